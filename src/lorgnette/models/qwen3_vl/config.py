"""Qwen3-VL's sizes from its config.json, and what the fast engine does not support of it. Needs no torch."""

from collections.abc import Iterator

from lorgnette.models.model_config import (
    HfConfig,
    TextConfig,
    VisionConfig,
    find_first_reason,
    get_rope_section,
    get_text_section,
    list_unsupported_features,
    read_nested_vision_sizes,
    read_text_sizes,
)

VISION_WIDTH_KEY = "hidden_size"
CAN_BE_FLAT = False


def parse_text_config(config: HfConfig, model_type: str = "qwen3_vl") -> TextConfig:
    """Not checked; `registry.parse_configs` checks first."""
    tree = get_text_section(config)
    return TextConfig(
        **read_text_sizes(config),
        head_dim=int(tree["head_dim"]),
        model_type=model_type,
        has_qkv_bias=bool(tree.get("attention_bias")),
        has_qk_norm=True,
        is_mrope_interleaved=True,
        num_deepstack_levels=len(config["vision_config"].get("deepstack_visual_indexes") or ()),
    )


def parse_vision_config(config: HfConfig, model_type: str = "qwen3_vl") -> VisionConfig:
    """Not checked; `registry.parse_configs` checks first."""
    tree = config["vision_config"]
    return VisionConfig(
        **read_nested_vision_sizes(config),
        model_type=model_type,
        position_table=round(int(tree["num_position_embeddings"]) ** 0.5),
        deepstack_blocks=tuple(map(int, tree.get("deepstack_visual_indexes") or ())),
    )


def find_unsupported_feature(config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model, or None if it can. The reference engine may still run it."""
    return find_first_reason(_list_unsupported_features(config))


def _list_unsupported_features(config: HfConfig) -> Iterator[str]:
    parsers = parse_text_config, parse_vision_config
    yield from list_unsupported_features(config, "qwen3_vl", "gelu_pytorch_tanh", parsers)
    tree, count = get_text_section(config), config["vision_config"]["num_position_embeddings"]
    if parse_vision_config(config).position_table ** 2 != count:
        yield f"{count} learned positions, which are no square"
    if tree.get("attention_bias"):
        yield "attention_bias"  # o_proj has one then, too
    if not get_rope_section(tree).get("mrope_interleaved", True):
        yield "M-RoPE that is not interleaved"  # transformers does not read this key
