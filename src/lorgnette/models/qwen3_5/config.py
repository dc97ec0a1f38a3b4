"""Qwen3.5's sizes from its config.json. The fast engine does not run its linear attention. Needs no torch."""

from dataclasses import replace

from lorgnette.models.model_config import HfConfig, LinearAttention, TextConfig, VisionConfig, get_text_section
from lorgnette.models.qwen3_vl import config as qwen3_vl

VISION_WIDTH_KEY = qwen3_vl.VISION_WIDTH_KEY
CAN_BE_FLAT = False
_DEFAULT_INTERVAL = 4  # transformers' default


def parse_text_config(config: HfConfig, model_type: str = "qwen3_5") -> TextConfig:
    """Not checked."""
    text = qwen3_vl.parse_text_config(config, model_type)
    return replace(text, linear_attention=_parse_linear_attention(get_text_section(config), text.num_layers))


def _parse_linear_attention(tree: HfConfig, num_layers: int) -> LinearAttention:
    interval = int(tree.get("full_attention_interval") or _DEFAULT_INTERVAL)
    kinds = tree.get("layer_types") or [
        "linear_attention" if (i + 1) % interval else "full_attention" for i in range(num_layers)
    ]
    return LinearAttention(
        layers=tuple(i for i, kind in enumerate(kinds) if kind == "linear_attention"),
        num_key_heads=int(tree["linear_num_key_heads"]),
        num_value_heads=int(tree["linear_num_value_heads"]),
        key_head_dim=int(tree["linear_key_head_dim"]),
        value_head_dim=int(tree["linear_value_head_dim"]),
        kernel_size=int(tree.get("linear_conv_kernel_dim", 4)),
    )


def parse_vision_config(config: HfConfig) -> VisionConfig:
    """Not checked."""
    return qwen3_vl.parse_vision_config(config, "qwen3_5")


def find_unsupported_feature(config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model."""
    return "its linear attention"
