"""Names and shapes of Qwen3.5's weights, as transformers names them now. Needs no torch."""

from lorgnette.models.model_config import LinearAttention, TextConfig, WeightShapes
from lorgnette.models.qwen3_vl import weights as qwen3_vl
from lorgnette.models.qwen3_vl.weights import list_vision_weights

__all__ = ["list_text_weights", "list_vision_weights"]


def list_text_weights(config: TextConfig) -> WeightShapes:
    """Every weight of the decoder; a tied output layer is not listed."""
    weights, linear = qwen3_vl.list_text_weights(config), config.linear_attention
    assert linear is not None
    for layer in linear.layers:
        prefix = f"model.language_model.layers.{layer}"
        for name in [name for name in weights if name.startswith(f"{prefix}.self_attn.")]:
            del weights[name]
        own = _list_linear_attention_weights(linear, config.hidden_size)
        weights |= {f"{prefix}.linear_attn.{name}": shape for name, shape in own.items()}
    return weights


def _list_linear_attention_weights(linear: LinearAttention, C: int) -> WeightShapes:
    heads, values = linear.num_value_heads, linear.value_width
    qkv = 2 * linear.key_width + values
    return {
        "dt_bias": (heads,), "A_log": (heads,), "conv1d.weight": (qkv, 1, linear.kernel_size),
        "norm.weight": (linear.value_head_dim,), "out_proj.weight": (C, values), "in_proj_qkv.weight": (qkv, C),
        "in_proj_z.weight": (values, C), "in_proj_b.weight": (heads, C), "in_proj_a.weight": (heads, C),
    }  # fmt: skip
