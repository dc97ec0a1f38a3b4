"""Sizes of a Qwen2-VL model from its config.json, and whether the fast engine supports it. Needs no torch.

Reads the hub's flat layout and transformers' nested one (`text_config`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.kernels import MAX_GROUP_SIZE
from lorgnette.models.family import EMBEDDING, LM_HEAD

HfConfig = Mapping[str, Any]
WeightShapes = dict[str, tuple[int, ...]]
"""Shapes of weights by name."""

LABELS_PER_CHUNK = 2048
"""Rows of logits in memory at a time: 2048 × 151,936 bf16 are 0.6 GB."""
VISION_ROPE_THETA = 10000.0
_DEFAULT_MLP_RATIO = 4  # transformers' default


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
        """Raises LorgnetteError if the fast engine does not support this model."""
        _check_supported(config)
        return _parse_text_config(config)

    def list_weight_shapes(self) -> WeightShapes:
        """Every weight of the decoder; a tied output layer is not listed."""
        q_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = {
            "input_layernorm.weight": (self.hidden_size,),
            "self_attn.q_proj.weight": (q_width, self.hidden_size),
            "self_attn.q_proj.bias": (q_width,),
            "self_attn.k_proj.weight": (kv_width, self.hidden_size),
            "self_attn.k_proj.bias": (kv_width,),
            "self_attn.v_proj.weight": (kv_width, self.hidden_size),
            "self_attn.v_proj.bias": (kv_width,),
            "self_attn.o_proj.weight": (self.hidden_size, q_width),
            "post_attention_layernorm.weight": (self.hidden_size,),
            "mlp.gate_proj.weight": (self.intermediate_size, self.hidden_size),
            "mlp.up_proj.weight": (self.intermediate_size, self.hidden_size),
            "mlp.down_proj.weight": (self.hidden_size, self.intermediate_size),
        }
        outer = {
            EMBEDDING: (self.vocab_size, self.hidden_size),
            "model.language_model.norm.weight": (self.hidden_size,),
        }
        head = {} if self.tie_word_embeddings else {LM_HEAD: (self.vocab_size, self.hidden_size)}
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
        """Raises LorgnetteError if the fast engine does not support this model."""
        _check_supported(config)
        return _parse_vision_config(config)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values per patch: channels · frames · patch_size²."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    def list_weight_shapes(self) -> WeightShapes:
        """Every weight of the tower and its merger."""
        merged = self.embed_dim * self.merge_size**2
        block = (
            _build_norm_shapes("norm1", self.embed_dim)
            | _build_linear_shapes("attn.qkv", self.embed_dim, 3 * self.embed_dim)
            | _build_linear_shapes("attn.proj", self.embed_dim, self.embed_dim)
            | _build_norm_shapes("norm2", self.embed_dim)
            | _build_linear_shapes("mlp.fc1", self.embed_dim, self.intermediate_size)
            | _build_linear_shapes("mlp.fc2", self.intermediate_size, self.embed_dim)
        )
        merger = (
            _build_norm_shapes("ln_q", self.embed_dim)
            | _build_linear_shapes("mlp.0", merged, merged)
            | _build_linear_shapes("mlp.2", merged, self.out_features)
        )
        return (
            {
                "model.visual.patch_embed.proj.weight": (
                    self.embed_dim, self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size,
                )
            }
            | _repeat_per_layer("model.visual.blocks", self.depth, block)
            | {f"model.visual.merger.{name}": size for name, size in merger.items()}
        )  # fmt: skip


def find_unsupported_feature(config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model, or None if it can. The reference engine may still run it."""
    try:
        return next(_list_unsupported_features(config), None)
    except KeyError as error:
        return f"config.json has no {error.args[0]}"
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        return f"config.json has an unexpected value: {error!r}"


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
    yield from _check_sizes(_parse_text_config(config), _parse_vision_config(config))


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
    sizes = (
        text.num_layers, text.hidden_size, text.num_heads, text.num_kv_heads, text.head_dim, text.intermediate_size,
        text.vocab_size, vision.depth, vision.embed_dim, vision.num_heads, vision.intermediate_size,
        vision.out_features, vision.patch_size, vision.merge_size, vision.temporal_patch_size, vision.in_channels,
    )  # fmt: skip
    if min(sizes) < 1:
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


def _check_supported(config: HfConfig) -> None:
    reason = find_unsupported_feature(config)
    if reason is not None:
        raise LorgnetteError(
            f"the fast engine does not support this model: {reason}",
            where="config.json",
            hint="use a Qwen2-VL checkpoint",
        )


def _parse_text_config(config: HfConfig) -> TextConfig:
    tree = _get_text_section(config)
    hidden, heads = int(tree["hidden_size"]), int(tree["num_attention_heads"])
    rope = _get_rope_section(tree)
    theta = rope["rope_theta"] if "rope_theta" in rope else tree["rope_theta"]
    return TextConfig(
        num_layers=int(tree["num_hidden_layers"]),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=int(tree["num_key_value_heads"]),
        head_dim=hidden // heads,
        intermediate_size=int(tree["intermediate_size"]),
        vocab_size=int(tree["vocab_size"]),
        rms_norm_eps=float(tree["rms_norm_eps"]),
        rope_theta=float(theta),
        mrope_section=tuple(map(int, rope["mrope_section"])),  # type: ignore[arg-type]
        tie_word_embeddings=bool(config.get("tie_word_embeddings") or tree.get("tie_word_embeddings")),
    )


def _parse_vision_config(config: HfConfig) -> VisionConfig:
    tree = config["vision_config"]
    embed = int(tree["embed_dim"])
    return VisionConfig(
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


def _get_text_section(config: HfConfig) -> HfConfig:
    """The decoder's settings: nested by transformers, flat in the hub's files."""
    tree: HfConfig = config.get("text_config") or config
    return tree


def _get_rope_section(tree: HfConfig) -> HfConfig:
    rope: HfConfig = tree.get("rope_scaling") or tree["rope_parameters"]
    return rope


def _repeat_per_layer(prefix: str, count: int, layer: WeightShapes) -> WeightShapes:
    return {f"{prefix}.{i}.{name}": size for i in range(count) for name, size in layer.items()}


def _build_norm_shapes(name: str, width: int) -> WeightShapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _build_linear_shapes(name: str, in_features: int, out_features: int) -> WeightShapes:
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}
