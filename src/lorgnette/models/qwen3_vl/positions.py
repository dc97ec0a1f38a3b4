"""Qwen3-VL's M-RoPE positions: for images those of Qwen2-VL. Needs no torch."""

from lorgnette.models.qwen2_vl.positions import compute_position_ids

__all__ = ["compute_position_ids"]
