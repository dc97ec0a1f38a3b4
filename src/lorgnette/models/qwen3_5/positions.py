"""Qwen3.5's M-RoPE positions: for images those of Qwen3-VL. Needs no torch."""

from lorgnette.models.qwen3_vl.positions import compute_position_ids

__all__ = ["compute_position_ids"]
