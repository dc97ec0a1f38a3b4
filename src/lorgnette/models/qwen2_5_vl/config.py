"""Qwen2.5-VL's sizes from its config.json, and what the fast engine does not support of it. Needs no torch."""

from lorgnette.models.model_config import (
    HfConfig,
    TextConfig,
    VisionConfig,
    find_first_reason,
    list_unsupported_features,
    read_nested_vision_sizes,
    read_text_sizes,
)

VISION_WIDTH_KEY = "hidden_size"
CAN_BE_FLAT = True


def parse_text_config(config: HfConfig) -> TextConfig:
    """Not checked; `registry.parse_configs` checks first."""
    sizes = read_text_sizes(config)
    return TextConfig(**sizes, head_dim=sizes["hidden_size"] // sizes["num_heads"], model_type="qwen2_5_vl")


def parse_vision_config(config: HfConfig) -> VisionConfig:
    """Not checked; `registry.parse_configs` checks first."""
    tree = config["vision_config"]
    return VisionConfig(
        **read_nested_vision_sizes(config),
        model_type="qwen2_5_vl",
        window_size=int(tree["window_size"]),
        full_attention_blocks=tuple(map(int, tree["fullatt_block_indexes"])),
    )


def find_unsupported_feature(config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model, or None if it can. The reference engine may still run it."""
    parsers = parse_text_config, parse_vision_config
    return find_first_reason(list_unsupported_features(config, "qwen2_5_vl", "silu", parsers))
