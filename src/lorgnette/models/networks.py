"""The fast engine's networks by family, and the classes that all of them share. Other packages import from here."""

from importlib import import_module

from lorgnette.models.qwen2_vl.text_decoder import Decoder, DecoderInputs, DecoderLayer, add_level, write_features
from lorgnette.models.qwen2_vl.vision_tower import VisionTower

__all__ = [
    "Decoder", "DecoderInputs", "DecoderLayer", "VisionTower", "add_level", "find_decoder_classes", "find_tower_class",
    "write_features",
]  # fmt: skip


def find_decoder_classes(model_type: str) -> tuple[type[Decoder], type[DecoderLayer]]:
    """The decoder of a family that the fast engine supports, and its layer."""
    module = import_module(f"lorgnette.models.{model_type}.text_decoder")
    return module.Decoder, module.DecoderLayer


def find_tower_class(model_type: str) -> type[VisionTower]:
    """The vision tower of a family that the fast engine supports."""
    tower: type[VisionTower] = import_module(f"lorgnette.models.{model_type}.vision_tower").VisionTower
    return tower
