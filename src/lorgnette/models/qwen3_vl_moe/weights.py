"""Names and shapes of Qwen3-VL-MoE's weights, as transformers names them now. Needs no torch."""

from lorgnette.models.model_config import Experts, TextConfig, WeightShapes, repeat_per_layer
from lorgnette.models.qwen3_vl import weights as qwen3_vl
from lorgnette.models.qwen3_vl.weights import list_vision_weights

__all__ = ["list_text_weights", "list_vision_weights", "replace_mlp_by_experts"]


def list_text_weights(config: TextConfig) -> WeightShapes:
    """Every weight of the decoder; a tied output layer is not listed."""
    return replace_mlp_by_experts(qwen3_vl.list_text_weights(config), config)


def replace_mlp_by_experts(weights: WeightShapes, config: TextConfig) -> WeightShapes:
    """The weights of a decoder with experts in the place of every MLP."""
    assert config.experts is not None
    experts = repeat_per_layer(
        "model.language_model.layers", config.num_layers, _list_expert_weights(config.experts, config.hidden_size)
    )
    return {name: shape for name, shape in weights.items() if ".mlp." not in name} | experts


def _list_expert_weights(experts: Experts, C: int) -> WeightShapes:
    """Of a layer: the router, the experts in two matrices each, and the shared one with its gate."""
    E, F, S = experts.count, experts.intermediate_size, experts.shared_size
    own: WeightShapes = {
        "mlp.gate.weight": (E, C), "mlp.experts.gate_up_proj": (E, 2 * F, C), "mlp.experts.down_proj": (E, C, F),
    }  # fmt: skip
    shared: WeightShapes = {
        "mlp.shared_expert.gate_proj.weight": (S, C), "mlp.shared_expert.up_proj.weight": (S, C),
        "mlp.shared_expert.down_proj.weight": (C, S), "mlp.shared_expert_gate.weight": (1, C),
    }  # fmt: skip
    return own | shared if S else own
