"""Names and shapes of Qwen3.5's weights, without those of linear attention. Needs no torch."""

from lorgnette.models.qwen3_vl.weights import list_text_weights, list_vision_weights

__all__ = ["list_text_weights", "list_vision_weights"]
