"""Qwen3-VL's vision tower in the fast engine: that of Qwen2-VL."""

from lorgnette.models.qwen2_vl.vision_tower import VisionTower

__all__ = ["VisionTower"]
