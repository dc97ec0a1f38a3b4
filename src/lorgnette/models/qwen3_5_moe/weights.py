"""Names and shapes of Qwen3.5-MoE's weights, without those of linear attention and the experts. Needs no torch."""

from lorgnette.models.qwen3_5.weights import list_text_weights, list_vision_weights

__all__ = ["list_text_weights", "list_vision_weights"]
