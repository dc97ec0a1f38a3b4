"""What a checkpoint's config.json says of its shapes, as far as this project's own engine can compute it.

Reads the hub's flat layout and transformers' nested one (`text_config`). Knows Qwen2-VL. Needs no torch.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import Checkpoint

Config = Mapping[str, Any]
Sizes = dict[str, tuple[int, ...]]
"""Shapes of weights by name."""

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
VISION_THETA = 10000.0
MOST_GROUPED = 32
"""Query heads of one key-value head, which the attention kernels take together."""
_MLP_RATIO = 4  # transformers' own where the config does not say


@dataclass(frozen=True, slots=True)
class TextShape:
    """The decoder: `layers` blocks of width `hidden`; `heads` query heads and `kv_heads` key-value heads of `head_dim`.

    mrope_section: how many of head_dim/2 frequencies turn with time, height and width.
    tied: the output layer is the embedding.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    tied: bool

    @classmethod
    def of(cls, config: Config) -> "TextShape":
        """Raises LorgnetteError for a config that this engine does not know."""
        _demand(config)
        return _text(config)

    def weights(self) -> Sizes:
        """Every weight of the decoder; a tied output layer is none of its own."""
        inner, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = {
            "input_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (inner, self.hidden),
            "self_attn.q_proj.bias": (inner,),
            "self_attn.k_proj.weight": (narrow, self.hidden),
            "self_attn.k_proj.bias": (narrow,),
            "self_attn.v_proj.weight": (narrow, self.hidden),
            "self_attn.v_proj.bias": (narrow,),
            "self_attn.o_proj.weight": (self.hidden, inner),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.mlp, self.hidden),
            "mlp.up_proj.weight": (self.mlp, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.mlp),
        }
        outer = {EMBEDDING: (self.vocab, self.hidden), "model.language_model.norm.weight": (self.hidden,)}
        head = {} if self.tied else {HEAD: (self.vocab, self.hidden)}
        return outer | head | _repeated("model.language_model.layers", self.layers, layer)


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The tower: `depth` blocks of width `embed`, then the merger, which makes a feature [out] of merge² patches."""

    depth: int
    embed: int
    heads: int
    mlp: int
    out: int
    patch: int
    merge: int
    temporal: int
    channels: int

    @classmethod
    def of(cls, config: Config) -> "VisionShape":
        """Raises LorgnetteError for a config that this engine does not know."""
        _demand(config)
        return _vision(config)

    @property
    def head_dim(self) -> int:
        return self.embed // self.heads

    @property
    def patch_numbers(self) -> int:
        """Numbers of one patch: channels · temporal · patch²."""
        return self.channels * self.temporal * self.patch**2

    def weights(self) -> Sizes:
        """Every weight of the tower and its merger."""
        wide = self.embed * self.merge**2
        block = (
            _normed("norm1", self.embed)
            | _linear("attn.qkv", self.embed, 3 * self.embed)
            | _linear("attn.proj", self.embed, self.embed)
            | _normed("norm2", self.embed)
            | _linear("mlp.fc1", self.embed, self.mlp)
            | _linear("mlp.fc2", self.mlp, self.embed)
        )
        merger = _normed("ln_q", self.embed) | _linear("mlp.0", wide, wide) | _linear("mlp.2", wide, self.out)
        return (
            {
                "model.visual.patch_embed.proj.weight": (
                    self.embed, self.channels, self.temporal, self.patch, self.patch,
                )
            }
            | _repeated("model.visual.blocks", self.depth, block)
            | {f"model.visual.merger.{name}": size for name, size in merger.items()}
        )  # fmt: skip


def config_of(checkpoint: Checkpoint) -> Config:
    config: Config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    return config


def unsupported(config: Config) -> str | None:
    """Why our own engine cannot compute this model, or None where it can; transformers' may still."""
    try:
        return next(_reasons(config), None)
    except KeyError as error:
        return f"config.json does not say {error.args[0]}"
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        return f"config.json cannot be understood: {error!r}"


def _reasons(config: Config) -> Iterator[str]:
    tree, vision = _language(config), config["vision_config"]
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
    yield from _odd_rope(tree, vision)
    yield from _odd_sizes(_text(config), _vision(config))


def _odd_rope(tree: Config, vision: Config) -> Iterator[str]:
    rope = _rope(tree)
    kind = rope.get("type", rope.get("rope_type"))
    if kind not in ("mrope", "default") or rope.get("rope_type", kind) not in ("mrope", "default"):
        yield f"rope type {kind!r}"
    if rope.get("partial_rotary_factor", 1) != 1:
        yield "partial rotary embedding"
    turned = vision.get("rope_parameters") or {}
    if turned.get("rope_type", "axial") != "axial" or turned.get("rope_theta", VISION_THETA) != VISION_THETA:
        yield "the vision tower's rope_parameters"


def _odd_sizes(text: TextShape, vision: VisionShape) -> Iterator[str]:
    sizes = (
        text.layers, text.hidden, text.heads, text.kv_heads, text.head_dim, text.mlp, text.vocab,
        vision.depth, vision.embed, vision.heads, vision.mlp, vision.out, vision.patch, vision.merge,
        vision.temporal, vision.channels,
    )  # fmt: skip
    if min(sizes) < 1:
        yield "a size below 1"
    if text.heads % text.kv_heads or text.heads * text.head_dim != text.hidden:
        yield f"{text.heads} heads and {text.kv_heads} key-value heads of a width of {text.hidden}"
    if text.head_dim & (text.head_dim - 1):
        yield f"heads of {text.head_dim}, no power of two"
    if text.heads // text.kv_heads > MOST_GROUPED:
        yield f"{text.heads // text.kv_heads} heads that look at one key-value head"
    if len(text.mrope_section) != 3 or 2 * sum(text.mrope_section) != text.head_dim:
        yield f"mrope_section {list(text.mrope_section)} for heads of {text.head_dim}"
    if vision.heads * vision.head_dim != vision.embed or vision.head_dim % 4:
        yield f"{vision.heads} vision heads of a width of {vision.embed}"
    if vision.out != text.hidden:
        yield f"features of {vision.out} for a decoder of {text.hidden}"


def _demand(config: Config) -> None:
    reason = unsupported(config)
    if reason is not None:
        raise LorgnetteError(
            f"this model is not supported here: {reason}", where="config.json", remedy="use a Qwen2-VL checkpoint"
        )


def _text(config: Config) -> TextShape:
    tree = _language(config)
    hidden, heads = int(tree["hidden_size"]), int(tree["num_attention_heads"])
    rope = _rope(tree)
    theta = rope["rope_theta"] if "rope_theta" in rope else tree["rope_theta"]
    return TextShape(
        layers=int(tree["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(tree["num_key_value_heads"]),
        head_dim=hidden // heads,
        mlp=int(tree["intermediate_size"]),
        vocab=int(tree["vocab_size"]),
        eps=float(tree["rms_norm_eps"]),
        rope_theta=float(theta),
        mrope_section=tuple(map(int, rope["mrope_section"])),  # type: ignore[arg-type]
        tied=bool(config.get("tie_word_embeddings") or tree.get("tie_word_embeddings")),
    )


def _vision(config: Config) -> VisionShape:
    tree = config["vision_config"]
    embed = int(tree["embed_dim"])
    return VisionShape(
        depth=int(tree["depth"]),
        embed=embed,
        heads=int(tree["num_heads"]),
        mlp=int(embed * tree.get("mlp_ratio", _MLP_RATIO)),
        out=int(tree["hidden_size"]),
        patch=int(tree["patch_size"]),
        merge=int(tree["spatial_merge_size"]),
        temporal=int(tree["temporal_patch_size"]),
        channels=int(tree.get("in_channels", 3)),
    )


def _language(config: Config) -> Config:
    """The decoder's settings: transformers nests them, the hub's files do not."""
    tree: Config = config.get("text_config") or config
    return tree


def _rope(tree: Config) -> Config:
    rope: Config = tree.get("rope_scaling") or tree["rope_parameters"]
    return rope


def _repeated(prefix: str, count: int, one: Sizes) -> Sizes:
    return {f"{prefix}.{i}.{name}": size for i in range(count) for name, size in one.items()}


def _normed(name: str, width: int) -> Sizes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inner: int, outer: int) -> Sizes:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}
