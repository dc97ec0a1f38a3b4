"""The sizes of a model, as its config.json states them, for every family; and checks that all families share. Needs no
torch.

Reads the hub's flat layout and transformers' nested one (`text_config`). A family's config.py says which keys it reads.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from lorgnette.io.parse import describe_type, shorten
from lorgnette.kernels import MAX_GROUP_SIZE, MAX_HEAD_DIM

HfConfig = Mapping[str, Any]
WeightShapes = dict[str, tuple[int, ...]]
"""Shapes of weights by name."""

LABELS_PER_CHUNK = 2048
"""Rows of logits in memory at a time: 2048 × 151,936 bf16 are 0.6 GB."""
NUM_READERS = 8
"""Threads that read the decoder's weights, each with a piece of them on the device."""
VISION_ROPE_THETA = 10000.0
_Limits = Mapping[str, tuple[int | float, int | float]]
_TEXT_LIMITS: _Limits = {
    "hidden_size": (1, 2**16), "num_hidden_layers": (1, 512), "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024), "head_dim": (1, 2**12), "intermediate_size": (1, 2**18), "vocab_size": (1, 2**22),
    "max_position_embeddings": (1, 2**32), "rms_norm_eps": (1e-12, 1.0), "rope_theta": (1.0, 1e12),
    "num_experts": (1, 2**14), "num_local_experts": (1, 2**14), "num_experts_per_tok": (1, 2**14),
    "moe_intermediate_size": (1, 2**18), "shared_expert_intermediate_size": (1, 2**18),
    "linear_num_key_heads": (1, 1024), "linear_num_value_heads": (1, 1024),
    "linear_key_head_dim": (1, 2**12), "linear_value_head_dim": (1, 2**12),
    "linear_conv_kernel_dim": (1, 2**10), "full_attention_interval": (1, 512),
}  # fmt: skip
_MAX_DEPTH = 512
_VISION_LIMITS: _Limits = {
    "depth": (1, _MAX_DEPTH), "embed_dim": (1, 2**14), "num_heads": (1, 256), "mlp_ratio": (0.01, 64.0),
    "hidden_size": (1, 2**16), "patch_size": (1, 256), "spatial_merge_size": (1, 16), "temporal_patch_size": (1, 16),
    "in_channels": (1, 16), "in_chans": (1, 16), "num_hidden_layers": (1, 512), "num_attention_heads": (1, 256),
    "intermediate_size": (1, 2**18), "out_hidden_size": (1, 2**16), "num_position_embeddings": (1, 2**20),
    "window_size": (1, 2**16),
}  # fmt: skip
"""Fields of config.json with the least and the largest value; whole numbers if the limits are."""
_OPTIONAL = ("num_key_value_heads", "head_dim", "num_experts", "num_local_experts")
"""null: transformers' default."""
_BLOCK_LISTS = ("fullatt_block_indexes", "deepstack_visual_indexes")
_DEFAULT_SIZES = {
    "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 29568, "vocab_size": 152064,
}  # fmt: skip
"""transformers', where config.json does not say."""
_DEFAULT_VISION_WIDTH, _DEFAULT_DEPTH = 1280, 32
_RGB = 3
_ATTENTION_KEYS = ("_attn_implementation", "attn_implementation")
_ATTENTION_NAMES = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""transformers fetches any other name as a kernel of the hub. None of them is used: models are loaded with our own."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in the place of every layer's MLP.

    A token passes `num_active` of `count` MLPs of `intermediate_size`, and one of `shared_size` where that is not 0.
    """

    count: int
    num_active: int
    intermediate_size: int
    shared_size: int = 0


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Attention with a recurrence (the gated delta rule) in the place of full attention in most layers.

    layers: the numbers of those layers.
    """

    layers: tuple[int, ...]
    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    kernel_size: int

    @property
    def key_width(self) -> int:
        return self.num_key_heads * self.key_head_dim

    @property
    def value_width(self) -> int:
        return self.num_value_heads * self.value_head_dim


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The text decoder's sizes. What differs between families has Qwen2-VL's value if it is not given.

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
    model_type: str = "qwen2_vl"
    has_qkv_bias: bool = True
    has_qk_norm: bool = False
    """RMSNorm of every head of q and k, before the rotation."""
    is_mrope_interleaved: bool = False
    """Frequency j belongs to coordinate j mod 3, not to a block of frequencies."""
    num_deepstack_levels: int = 0
    """Image features added behind as many of the first layers."""
    experts: Experts | None = None
    linear_attention: LinearAttention | None = None
    """Where it is present, full attention's output is gated, and q_proj gives the gate too."""

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of a layer's projections."""
        C, F = self.hidden_size, self.intermediate_size
        q_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        q_rows = 2 * q_width if self.linear_attention else q_width
        attention = {"q_proj": (q_rows, C), "k_proj": (kv_width, C), "v_proj": (kv_width, C), "o_proj": (C, q_width)}
        return attention | {"gate_proj": (F, C), "up_proj": (F, C), "down_proj": (C, F)}

    def list_weight_shapes(self) -> WeightShapes:
        """Every weight of the decoder; a tied output layer is not listed."""
        shapes: WeightShapes = _import_weights(self.model_type).list_text_weights(self)
        return shapes


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower's sizes. What a family's tower lacks is 0 or empty.

    The merger turns merge_size² patches into one feature of `out_features`. position_table: the side of the square of
    learned positions. window_size: pixels of a window's side; attention crosses windows in `full_attention_blocks`
    alone. deepstack_blocks: behind each of them one more merger makes a level of features for the decoder.
    """

    depth: int
    embed_dim: int
    num_heads: int
    intermediate_size: int
    out_features: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    in_channels: int
    model_type: str = "qwen2_vl"
    position_table: int = 0
    window_size: int = 0
    full_attention_blocks: tuple[int, ...] = ()
    deepstack_blocks: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values per patch: channels · frames · patch_size²."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def feature_width(self) -> int:
        """Values per image token: the merger's output and every level of deepstack."""
        return self.out_features * (1 + len(self.deepstack_blocks))

    def list_weight_shapes(self) -> WeightShapes:
        """Every weight of the tower and its mergers."""
        shapes: WeightShapes = _import_weights(self.model_type).list_vision_weights(self)
        return shapes


def _import_weights(model_type: str) -> ModuleType:
    return import_module(f"lorgnette.models.{model_type}.weights")


def get_text_section(config: HfConfig) -> HfConfig:
    """The decoder's settings: nested by transformers, flat in the hub's files."""
    tree: HfConfig = config.get("text_config") or config
    return tree


def get_rope_section(tree: HfConfig) -> HfConfig:
    rope: HfConfig = tree.get("rope_scaling") or tree["rope_parameters"]
    return rope


def read_text_sizes(config: HfConfig) -> dict[str, Any]:
    """The fields of TextConfig that every family states alike. Not checked."""
    tree = get_text_section(config)
    rope = get_rope_section(tree)
    return {
        "num_layers": int(tree["num_hidden_layers"]),
        "hidden_size": int(tree["hidden_size"]),
        "num_heads": int(tree["num_attention_heads"]),
        "num_kv_heads": int(tree["num_key_value_heads"]),
        "intermediate_size": int(tree["moe_intermediate_size" if read_num_experts(tree) else "intermediate_size"]),
        "vocab_size": int(tree["vocab_size"]),
        "rms_norm_eps": float(tree["rms_norm_eps"]),
        "rope_theta": float(rope["rope_theta"] if "rope_theta" in rope else tree["rope_theta"]),
        "mrope_section": tuple(map(int, rope["mrope_section"])),
        "tie_word_embeddings": has_tied_embeddings(config),
    }


def has_tied_embeddings(config: HfConfig) -> bool:
    """Whether the output layer is the embedding. transformers reads the key at the root; older files have it in
    text_config alone."""
    tied = config.get("tie_word_embeddings")
    return bool(get_text_section(config).get("tie_word_embeddings") if tied is None else tied)


def read_num_experts(tree: HfConfig) -> int:
    """0 without experts. transformers saves Qwen3-VL-MoE's under a name that the hub's files do not have."""
    return int(tree.get("num_experts") or tree.get("num_local_experts") or 0)


def read_vision_sizes(config: HfConfig) -> dict[str, Any]:
    """The fields of VisionConfig that every family states alike. Not checked."""
    tree = config["vision_config"]
    return {
        "depth": int(tree["depth"]),
        "num_heads": int(tree["num_heads"]),
        "patch_size": int(tree["patch_size"]),
        "merge_size": int(tree["spatial_merge_size"]),
        "temporal_patch_size": int(tree["temporal_patch_size"]),
        "in_channels": int(tree.get("in_channels", _RGB)),
    }


def read_nested_vision_sizes(config: HfConfig) -> dict[str, Any]:
    """`read_vision_sizes`, and the widths as every family after Qwen2-VL names them."""
    tree = config["vision_config"]
    return read_vision_sizes(config) | {
        "embed_dim": int(tree["hidden_size"]),
        "intermediate_size": int(tree["intermediate_size"]),
        "out_features": int(tree["out_hidden_size"]),
    }


def find_first_reason(reasons: Iterable[str]) -> str | None:
    """The first reason of a generator that reads config.json; a missing key or an odd value is a reason too."""
    try:
        return next(iter(reasons), None)
    except KeyError as error:
        return f"config.json has no {error.args[0]}"
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        return f"config.json has an unexpected value: {error!r}"


def list_unsupported_features(
    config: HfConfig,
    model_type: str,
    vision_act: str,
    parsers: tuple[Callable[[HfConfig], TextConfig], Callable[[HfConfig], VisionConfig]],
) -> Iterator[str]:
    """What the fast engine does not support in any family. parsers: the family's."""
    tree, vision = get_text_section(config), config["vision_config"]
    if config.get("model_type") != model_type:
        yield f"model_type {config.get('model_type')!r}"
    act = tree.get("hidden_act", "silu")
    if act != "silu":
        yield f"hidden_act {act!r}"
    if (found := vision.get("hidden_act", vision_act)) != vision_act:
        yield f"the vision tower's hidden_act {found!r}"
    if tree.get("use_sliding_window") or has_sliding_layers(tree):
        yield "sliding-window attention"
    yield from _check_rope(tree, vision)
    parse_text_config, parse_vision_config = parsers
    yield from _check_sizes(parse_text_config(config), parse_vision_config(config))


def has_sliding_layers(tree: HfConfig) -> bool:
    """Whether transformers gives a layer a sliding window. tree: the decoder's settings."""
    if kinds := tree.get("layer_types"):
        return "sliding_attention" in kinds
    first = tree.get("max_window_layers", _DEFAULT_SIZES["num_hidden_layers"])
    is_on = tree.get("use_sliding_window") and tree.get("sliding_window", True)
    return bool(is_on and first < tree.get("num_hidden_layers", 0))


def _check_rope(tree: HfConfig, vision: HfConfig) -> Iterator[str]:
    rope = get_rope_section(tree)
    kind = rope.get("type", rope.get("rope_type"))
    if kind not in ("mrope", "default") or rope.get("rope_type", kind) not in ("mrope", "default"):
        yield f"rope type {kind!r}"
    if rope.get("partial_rotary_factor", 1) != 1:
        yield "partial rotary embedding"
    axial = vision.get("rope_parameters") or {}
    if axial.get("rope_type", "axial") != "axial" or axial.get("rope_theta", VISION_ROPE_THETA) != VISION_ROPE_THETA:
        yield "the vision tower's rope_parameters"


def _check_sizes(text: TextConfig, vision: VisionConfig) -> Iterator[str]:
    sizes = (
        text.num_layers, text.hidden_size, text.num_heads, text.num_kv_heads, text.head_dim, text.intermediate_size,
        text.vocab_size, vision.depth, vision.embed_dim, vision.num_heads, vision.intermediate_size,
        vision.out_features, vision.patch_size, vision.merge_size, vision.temporal_patch_size, vision.in_channels,
    )  # fmt: skip
    if min(sizes) < 1:
        yield "a size below 1"
    if text.head_dim & (text.head_dim - 1):
        yield f"a head width of {text.head_dim}, not a power of two"
    if text.head_dim > MAX_HEAD_DIM:
        yield f"a head width of {text.head_dim} (at most {MAX_HEAD_DIM})"
    if text.num_heads // text.num_kv_heads > MAX_GROUP_SIZE:
        yield f"{text.num_heads // text.num_kv_heads} query heads per key-value head (at most {MAX_GROUP_SIZE})"
    yield from list_contradictions(text, vision)
    if len(text.mrope_section) != 3 or 2 * sum(text.mrope_section) != text.head_dim:
        yield f"mrope_section {list(text.mrope_section)} with a head width of {text.head_dim}"


def list_contradictions(text: TextConfig, vision: VisionConfig) -> Iterator[str]:
    """Sizes that do not go together, so that no engine can compute with them."""
    if text.num_heads % text.num_kv_heads:
        yield f"{text.num_heads} heads and {text.num_kv_heads} key-value heads with a hidden size of {text.hidden_size}"
    if not text.is_mrope_interleaved and 2 * sum(text.mrope_section) != text.head_dim:
        yield f"mrope_section {list(text.mrope_section)} with a head width of {text.head_dim}"
    if vision.in_channels != _RGB:
        yield f"images of {vision.in_channels} channels, not {_RGB}"
    if vision.num_heads * vision.head_dim != vision.embed_dim or vision.head_dim % 4:
        yield f"{vision.num_heads} vision heads with an embedding width of {vision.embed_dim}"
    if vision.out_features != text.hidden_size:
        yield f"image features of {vision.out_features} with a hidden size of {text.hidden_size}"
    if len({*vision.deepstack_blocks} & {*range(vision.depth)}) != len(vision.deepstack_blocks):
        yield f"deepstack_visual_indexes {list(vision.deepstack_blocks)} in a tower of {vision.depth} blocks"
    if 0 < vision.window_size < vision.patch_size * vision.merge_size:
        yield f"a window_size of {vision.window_size} with image tokens of {vision.patch_size * vision.merge_size}"


def estimate_num_values(config: HfConfig, vision_width_key: str) -> int:
    """About how many values the weights have: matrices of layers and vision blocks, and the embedding.

    From sizes that `find_absurd_value` accepts. vision_width_key: the name of the tower's width in `vision_config`.
    """
    text, vision = {**_DEFAULT_SIZES, **get_text_section(config)}, config.get("vision_config") or {}
    C, width = text["hidden_size"], vision.get(vision_width_key, _DEFAULT_VISION_WIDTH)
    experts = read_num_experts(text)
    mlp = experts * text.get("moe_intermediate_size", 0) if experts else text["intermediate_size"]
    layer, block = 2 * C * C + 3 * C * mlp, 4 * width**2
    values: int = (
        text["vocab_size"] * C + text["num_hidden_layers"] * layer + vision.get("depth", _DEFAULT_DEPTH) * block
    )
    return values


def find_absurd_value(config: HfConfig) -> str | None:
    """The first value of config.json that no model has, or None. Checked before anything is allocated."""
    return next(_list_absurd_values(config), None)


def _list_absurd_values(config: HfConfig) -> Iterator[str]:
    for name in ("text_config", "vision_config", "rope_scaling", "rope_parameters"):
        if not isinstance(config.get(name) or {}, dict):
            yield f"{name} is {describe_type(config[name])}, not an object"
    text, vision = get_text_section(config), config.get("vision_config") or {}
    yield from _list_values_beyond(_TEXT_LIMITS, text)
    yield from _list_values_beyond(_VISION_LIMITS, vision)
    yield from _list_odd_blocks(vision)
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


def _list_odd_blocks(vision: HfConfig) -> Iterator[str]:
    for name in _BLOCK_LISTS:
        blocks = vision.get(name) or []
        if not isinstance(blocks, list) or any(type(n) is not int or n not in range(_MAX_DEPTH) for n in blocks):
            yield f"{name} is {shorten(repr(blocks))}, not a list of whole numbers from 0 to {_MAX_DEPTH - 1}"


def _list_values_beyond(limits: _Limits, tree: HfConfig) -> Iterator[str]:
    for name, (low, high) in limits.items():
        value: Any = tree.get(name)
        is_whole = isinstance(low, int)
        is_number = type(value) is int or (type(value) is float and not is_whole)
        if name in tree and not (is_number and low <= value <= high) and (value is not None or name not in _OPTIONAL):
            kind = "a whole number" if is_whole else "a number"
            yield f"{name} is {shorten(repr(value))}, not {kind} from {low:g} to {high:g}"


def repeat_per_layer(prefix: str, count: int, layer: WeightShapes) -> WeightShapes:
    return {f"{prefix}.{i}.{name}": shape for i in range(count) for name, shape in layer.items()}


def add_biases(shapes: WeightShapes) -> WeightShapes:
    """Weight and bias of each module, by the shapes of the weights."""
    kinds = (("weight", None), ("bias", 1))
    return {f"{name}.{kind}": shape[:end] for name, shape in shapes.items() for kind, end in kinds}
