"""Qwen3.5-MoE's M-RoPE positions: for images those of Qwen3.5. Needs no torch."""

from lorgnette.models.qwen3_5.positions import compute_position_ids

__all__ = ["compute_position_ids"]
