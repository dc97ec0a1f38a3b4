"""Qwen2-VL's sizes from its config.json, and what the fast engine does not support of it. Needs no torch."""

from lorgnette.models.model_config import (
    HfConfig,
    TextConfig,
    VisionConfig,
    find_first_reason,
    list_unsupported_features,
    read_text_sizes,
    read_vision_sizes,
)

VISION_WIDTH_KEY = "embed_dim"
CAN_BE_FLAT = True
_DEFAULT_MLP_RATIO = 4  # transformers' default


def parse_text_config(config: HfConfig) -> TextConfig:
    """Not checked; `registry.parse_configs` checks first."""
    sizes = read_text_sizes(config)
    return TextConfig(**sizes, head_dim=sizes["hidden_size"] // sizes["num_heads"], model_type="qwen2_vl")


def parse_vision_config(config: HfConfig) -> VisionConfig:
    """Not checked; `registry.parse_configs` checks first."""
    tree = config["vision_config"]
    embed = int(tree["embed_dim"])
    mlp = int(embed * tree.get("mlp_ratio", _DEFAULT_MLP_RATIO))
    return VisionConfig(
        **read_vision_sizes(config),
        embed_dim=embed,
        intermediate_size=mlp,
        out_features=int(tree["hidden_size"]),
        model_type="qwen2_vl",
    )


def find_unsupported_feature(config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model, or None if it can. The reference engine may still run it."""
    parsers = parse_text_config, parse_vision_config
    return find_first_reason(list_unsupported_features(config, "qwen2_vl", "quick_gelu", parsers))
