"""Qwen3.5-MoE's sizes from its config.json. The fast engine does not run its linear attention. Needs no torch."""

from lorgnette.models.model_config import HfConfig, TextConfig, VisionConfig
from lorgnette.models.qwen3_vl import config as qwen3_vl

VISION_WIDTH_KEY = qwen3_vl.VISION_WIDTH_KEY


def parse_text_config(config: HfConfig) -> TextConfig:
    """Not checked. The sizes of full attention; those of linear attention and the experts are not among them."""
    return qwen3_vl.parse_text_config(config, "qwen3_5_moe")


def parse_vision_config(config: HfConfig) -> VisionConfig:
    """Not checked."""
    return qwen3_vl.parse_vision_config(config, "qwen3_5_moe")


def find_unsupported_feature(config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model."""
    return "its linear attention and experts"
