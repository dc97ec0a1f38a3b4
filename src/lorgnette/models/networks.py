"""The fast engine's networks, the same for all families. Other packages import them from here."""

from lorgnette.models.qwen2_vl.text_decoder import Decoder, DecoderInputs, DecoderLayer
from lorgnette.models.qwen2_vl.vision_tower import VisionTower

__all__ = ["Decoder", "DecoderInputs", "DecoderLayer", "VisionTower"]
