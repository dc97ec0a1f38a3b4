"""Names and shapes of Qwen3.5-MoE's weights, as transformers names them now. Needs no torch."""

from lorgnette.models.model_config import TextConfig, WeightShapes
from lorgnette.models.qwen3_5 import weights as qwen3_5
from lorgnette.models.qwen3_5.weights import list_vision_weights
from lorgnette.models.qwen3_vl_moe.weights import replace_mlp_by_experts

__all__ = ["list_text_weights", "list_vision_weights"]


def list_text_weights(config: TextConfig) -> WeightShapes:
    """Every weight of the decoder; a tied output layer is not listed."""
    return replace_mlp_by_experts(qwen3_5.list_text_weights(config), config)
