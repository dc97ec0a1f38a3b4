"""Qwen3-VL-MoE's sizes from its config.json. The fast engine does not run its experts. Needs no torch."""

from dataclasses import replace

from lorgnette.models.model_config import (
    Experts,
    HfConfig,
    TextConfig,
    VisionConfig,
    get_text_section,
    read_num_experts,
)
from lorgnette.models.qwen3_vl import config as qwen3_vl

VISION_WIDTH_KEY = qwen3_vl.VISION_WIDTH_KEY
CAN_BE_FLAT = False


def parse_text_config(config: HfConfig) -> TextConfig:
    """Not checked."""
    return replace(qwen3_vl.parse_text_config(config, "qwen3_vl_moe"), experts=parse_experts(config))


def parse_experts(config: HfConfig) -> Experts:
    """Not checked."""
    tree = get_text_section(config)
    return Experts(
        count=read_num_experts(tree),
        num_active=int(tree["num_experts_per_tok"]),
        intermediate_size=int(tree["moe_intermediate_size"]),
        shared_size=int(tree.get("shared_expert_intermediate_size") or 0),
    )


def parse_vision_config(config: HfConfig) -> VisionConfig:
    """Not checked."""
    return qwen3_vl.parse_vision_config(config, "qwen3_vl_moe")


def find_unsupported_feature(config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model."""
    return "its experts"
