"""Sizes of a Qwen2-VL model from its config.json, and whether the fast engine supports it. Needs no torch.

Reads the hub's flat layout and transformers' nested one (`text_config`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import describe_type, shorten
from lorgnette.kernels import MAX_GROUP_SIZE
from lorgnette.models.family import EMBEDDING, LM_HEAD, name_linear

HfConfig = Mapping[str, Any]
WeightShapes = dict[str, tuple[int, ...]]
"""Shapes of weights by name."""

LABELS_PER_CHUNK = 2048
"""Rows of logits in memory at a time: 2048 × 151,936 bf16 are 0.6 GB."""
VISION_ROPE_THETA = 10000.0
_DEFAULT_MLP_RATIO = 4  # transformers' default
_WITH_BIAS = ("q_proj", "k_proj", "v_proj")
_Limits = Mapping[str, tuple[int | float, int | float]]
_TEXT_LIMITS: _Limits = {
    "hidden_size": (1, 2**16), "num_hidden_layers": (1, 512), "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024), "intermediate_size": (1, 2**18), "vocab_size": (1, 2**22),
    "max_position_embeddings": (1, 2**32), "rms_norm_eps": (1e-12, 1.0), "rope_theta": (1.0, 1e12),
}  # fmt: skip
_VISION_LIMITS: _Limits = {
    "depth": (1, 512), "embed_dim": (1, 2**14), "num_heads": (1, 256), "mlp_ratio": (0.01, 64.0),
    "hidden_size": (1, 2**16), "patch_size": (1, 256), "spatial_merge_size": (1, 16), "temporal_patch_size": (1, 16),
    "in_channels": (1, 16), "in_chans": (1, 16), "num_hidden_layers": (1, 512), "num_attention_heads": (1, 256),
}  # fmt: skip
"""Fields of config.json with the least and the largest value; whole numbers if the limits are."""
_OPTIONAL = ("num_key_value_heads",)  # null: as many as num_attention_heads
_DEFAULT_SIZES = {
    "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 29568, "vocab_size": 152064, "depth": 32,
    "embed_dim": 1280,
}  # fmt: skip
"""transformers', where config.json does not say."""
_ATTENTION_KEYS = ("_attn_implementation", "attn_implementation")
_ATTENTION_NAMES = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""transformers fetches any other name as a kernel of the hub. None of them is used: models are loaded with our own."""


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The text decoder's sizes.

    mrope_section: how many of the head_dim/2 rotary frequencies belong to time, height and width.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    tie_word_embeddings: bool

    @classmethod
    def from_hf_config(cls, config: HfConfig) -> "TextConfig":
        """Not checked; `parse_configs` checks first."""
        tree = _get_text_section(config)
        hidden, heads, rope = int(tree["hidden_size"]), int(tree["num_attention_heads"]), _get_rope_section(tree)
        return cls(
            num_layers=int(tree["num_hidden_layers"]),
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=int(tree["num_key_value_heads"]),
            head_dim=hidden // heads,
            intermediate_size=int(tree["intermediate_size"]),
            vocab_size=int(tree["vocab_size"]),
            rms_norm_eps=float(tree["rms_norm_eps"]),
            rope_theta=float(rope["rope_theta"] if "rope_theta" in rope else tree["rope_theta"]),
            mrope_section=tuple(map(int, rope["mrope_section"])),  # type: ignore[arg-type]
            tie_word_embeddings=bool(config.get("tie_word_embeddings") or tree.get("tie_word_embeddings")),
        )

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of a layer's projections."""
        C, F = self.hidden_size, self.intermediate_size
        q_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = {"q_proj": (q_width, C), "k_proj": (kv_width, C), "v_proj": (kv_width, C), "o_proj": (C, q_width)}
        return attention | {"gate_proj": (F, C), "up_proj": (F, C), "down_proj": (C, F)}

    def list_weight_shapes(self) -> WeightShapes:
        """Every weight of the decoder; a tied output layer is not listed."""
        norms = ("input_layernorm", "post_attention_layernorm")
        layer: WeightShapes = {f"{name}.weight": (self.hidden_size,) for name in norms}
        for name, shape in self.linear_shapes.items():
            module = name_linear(name)
            layer |= _add_biases({module: shape}) if name in _WITH_BIAS else {f"{module}.weight": shape}
        embedding = (self.vocab_size, self.hidden_size)
        outer = {EMBEDDING: embedding, "model.language_model.norm.weight": (self.hidden_size,)}
        head = {} if self.tie_word_embeddings else {LM_HEAD: embedding}
        return outer | head | _repeat_per_layer("model.language_model.layers", self.num_layers, layer)


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower's sizes. The merger turns merge_size² patches into one feature of `out_features`."""

    depth: int
    embed_dim: int
    num_heads: int
    intermediate_size: int
    out_features: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    in_channels: int

    @classmethod
    def from_hf_config(cls, config: HfConfig) -> "VisionConfig":
        """Not checked; `parse_configs` checks first."""
        tree = config["vision_config"]
        embed = int(tree["embed_dim"])
        return cls(
            depth=int(tree["depth"]),
            embed_dim=embed,
            num_heads=int(tree["num_heads"]),
            intermediate_size=int(embed * tree.get("mlp_ratio", _DEFAULT_MLP_RATIO)),
            out_features=int(tree["hidden_size"]),
            patch_size=int(tree["patch_size"]),
            merge_size=int(tree["spatial_merge_size"]),
            temporal_patch_size=int(tree["temporal_patch_size"]),
            in_channels=int(tree.get("in_channels", 3)),
        )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values per patch: channels · frames · patch_size²."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    def list_weight_shapes(self) -> WeightShapes:
        """Every weight of the tower and its merger."""
        E, F, merged = self.embed_dim, self.intermediate_size, self.embed_dim * self.merge_size**2
        patch = (E, self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size)
        linears: WeightShapes = {"attn.qkv": (3 * E, E), "attn.proj": (E, E), "mlp.fc1": (F, E), "mlp.fc2": (E, F)}
        block = _add_biases(linears | {"norm1": (E,), "norm2": (E,)})
        merger = {"ln_q": (E,), "mlp.0": (merged, merged), "mlp.2": (self.out_features, merged)}
        return (
            {"model.visual.patch_embed.proj.weight": patch}
            | _repeat_per_layer("model.visual.blocks", self.depth, block)
            | _add_biases({f"model.visual.merger.{name}": shape for name, shape in merger.items()})
        )


def parse_configs(config: HfConfig) -> tuple[TextConfig, VisionConfig]:
    """Raises LorgnetteError if the fast engine does not support this model."""
    if reason := find_unsupported_feature(config):
        message = f"the fast engine does not support this model: {reason}"
        raise LorgnetteError(message, where="config.json", hint="use a Qwen2-VL checkpoint")
    return TextConfig.from_hf_config(config), VisionConfig.from_hf_config(config)


def find_unsupported_feature(config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model, or None if it can. The reference engine may still run it."""
    try:
        return next(_list_unsupported_features(config), None)
    except KeyError as error:
        return f"config.json has no {error.args[0]}"
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        return f"config.json has an unexpected value: {error!r}"


def find_absurd_value(config: HfConfig) -> str | None:
    """The first value of config.json that no model of this family has, or None."""
    return next(_list_absurd_values(config), None)


def estimate_num_values(config: HfConfig) -> int:
    """About how many values the weights have: matrices of layers and vision blocks, and the embedding."""
    text = {**_DEFAULT_SIZES, **_get_text_section(config)}
    vision = {**_DEFAULT_SIZES, **(config.get("vision_config") or {})}
    C, F = text["hidden_size"], text["intermediate_size"]
    layer, block = 2 * C * C + 3 * C * F, 4 * vision["embed_dim"] ** 2
    values: int = text["vocab_size"] * C + text["num_hidden_layers"] * layer + vision["depth"] * block
    return values


def _list_absurd_values(config: HfConfig) -> Iterator[str]:
    for name in ("text_config", "vision_config", "rope_scaling", "rope_parameters"):
        if not isinstance(config.get(name) or {}, dict):
            yield f"{name} is {describe_type(config[name])}, not an object"
    text, vision = _get_text_section(config), config.get("vision_config") or {}
    yield from _list_values_beyond(_TEXT_LIMITS, text)
    yield from _list_values_beyond(_VISION_LIMITS, vision)
    for tree in (config, text, vision):
        for name in _ATTENTION_KEYS:
            if tree.get(name) not in _ATTENTION_NAMES:
                yield f"{name} is {shorten(repr(tree[name]))}, not one of {', '.join(map(str, _ATTENTION_NAMES[1:]))}"
    for name in ("rope_scaling", "rope_parameters"):
        rope = text.get(name) or {}
        if not isinstance(rope, dict):
            yield f"{name} is {describe_type(rope)}, not an object"
        yield from _list_values_beyond({"rope_theta": _TEXT_LIMITS["rope_theta"]}, rope)
        section = rope.get("mrope_section", [1, 1, 1])
        if not isinstance(section, list) or len(section) != 3 or any(type(n) is not int or n < 0 for n in section):
            yield f"mrope_section is {shorten(repr(section))}, not three whole numbers from 0"


def _list_values_beyond(limits: _Limits, tree: HfConfig) -> Iterator[str]:
    for name, (low, high) in limits.items():
        value: Any = tree.get(name)
        is_whole = isinstance(low, int)
        is_number = type(value) is int or (type(value) is float and not is_whole)
        if name in tree and not (is_number and low <= value <= high) and (value is not None or name not in _OPTIONAL):
            kind = "a whole number" if is_whole else "a number"
            yield f"{name} is {shorten(repr(value))}, not {kind} from {low:g} to {high:g}"


def _list_unsupported_features(config: HfConfig) -> Iterator[str]:
    tree, vision = _get_text_section(config), config["vision_config"]
    if config.get("model_type") != "qwen2_vl":
        yield f"model_type {config.get('model_type')!r}"
    for settings in (config, tree):
        if settings.get("quantization_config"):
            yield "quantized weights"
    act, vision_act = tree.get("hidden_act", "silu"), vision.get("hidden_act", "quick_gelu")
    if act != "silu":
        yield f"hidden_act {act!r}"
    if vision_act != "quick_gelu":
        yield f"the vision tower's hidden_act {vision_act!r}"
    if tree.get("use_sliding_window") or "sliding_attention" in (tree.get("layer_types") or ()):
        yield "sliding-window attention"
    yield from _check_rope(tree, vision)
    yield from _check_sizes(TextConfig.from_hf_config(config), VisionConfig.from_hf_config(config))


def _check_rope(tree: HfConfig, vision: HfConfig) -> Iterator[str]:
    rope = _get_rope_section(tree)
    kind = rope.get("type", rope.get("rope_type"))
    if kind not in ("mrope", "default") or rope.get("rope_type", kind) not in ("mrope", "default"):
        yield f"rope type {kind!r}"
    if rope.get("partial_rotary_factor", 1) != 1:
        yield "partial rotary embedding"
    axial = vision.get("rope_parameters") or {}
    if axial.get("rope_type", "axial") != "axial" or axial.get("rope_theta", VISION_ROPE_THETA) != VISION_ROPE_THETA:
        yield "the vision tower's rope_parameters"


def _check_sizes(text: TextConfig, vision: VisionConfig) -> Iterator[str]:
    if min(value for value in (*astuple(text), *astuple(vision)) if type(value) is int) < 1:
        yield "a size below 1"
    if text.num_heads % text.num_kv_heads or text.num_heads * text.head_dim != text.hidden_size:
        yield f"{text.num_heads} heads and {text.num_kv_heads} key-value heads with a hidden size of {text.hidden_size}"
    if text.head_dim & (text.head_dim - 1):
        yield f"a head width of {text.head_dim}, not a power of two"
    if text.num_heads // text.num_kv_heads > MAX_GROUP_SIZE:
        yield f"{text.num_heads // text.num_kv_heads} query heads per key-value head (at most {MAX_GROUP_SIZE})"
    if len(text.mrope_section) != 3 or 2 * sum(text.mrope_section) != text.head_dim:
        yield f"mrope_section {list(text.mrope_section)} with a head width of {text.head_dim}"
    if vision.num_heads * vision.head_dim != vision.embed_dim or vision.head_dim % 4:
        yield f"{vision.num_heads} vision heads with an embedding width of {vision.embed_dim}"
    if vision.out_features != text.hidden_size:
        yield f"image features of {vision.out_features} with a hidden size of {text.hidden_size}"


def _get_text_section(config: HfConfig) -> HfConfig:
    """The decoder's settings: nested by transformers, flat in the hub's files."""
    tree: HfConfig = config.get("text_config") or config
    return tree


def _get_rope_section(tree: HfConfig) -> HfConfig:
    rope: HfConfig = tree.get("rope_scaling") or tree["rope_parameters"]
    return rope


def _repeat_per_layer(prefix: str, count: int, layer: WeightShapes) -> WeightShapes:
    return {f"{prefix}.{i}.{name}": shape for i in range(count) for name, shape in layer.items()}


def _add_biases(shapes: WeightShapes) -> WeightShapes:
    """Weight and bias of each module, by the shapes of the weights."""
    kinds = (("weight", None), ("bias", 1))
    return {f"{name}.{kind}": shape[:end] for name, shape in shapes.items() for kind, end in kinds}
