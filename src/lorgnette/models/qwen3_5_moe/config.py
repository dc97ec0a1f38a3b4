"""Qwen3.5-MoE's sizes from its config.json. The fast engine does not run its linear attention. Needs no torch."""

from dataclasses import replace

from lorgnette.models.model_config import HfConfig, TextConfig, VisionConfig
from lorgnette.models.qwen3_5 import config as qwen3_5
from lorgnette.models.qwen3_vl import config as qwen3_vl
from lorgnette.models.qwen3_vl_moe.config import parse_experts

VISION_WIDTH_KEY = qwen3_vl.VISION_WIDTH_KEY
CAN_BE_FLAT = False


def parse_text_config(config: HfConfig) -> TextConfig:
    """Not checked."""
    return replace(qwen3_5.parse_text_config(config, "qwen3_5_moe"), experts=parse_experts(config))


def parse_vision_config(config: HfConfig) -> VisionConfig:
    """Not checked."""
    return qwen3_vl.parse_vision_config(config, "qwen3_5_moe")


def find_unsupported_feature(config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model."""
    return "its linear attention and experts"
