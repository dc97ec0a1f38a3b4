"""Names and shapes of Qwen2.5-VL's weights, as transformers names them now. Needs no torch."""

from lorgnette.models.model_config import VisionConfig, WeightShapes, add_biases, repeat_per_layer
from lorgnette.models.qwen2_vl.weights import list_text_weights

__all__ = ["list_text_weights", "list_vision_weights"]


def list_vision_weights(config: VisionConfig) -> WeightShapes:
    """Every weight of the tower and its merger. Norms have no bias."""
    E, F, merged = config.embed_dim, config.intermediate_size, config.embed_dim * config.merge_size**2
    patch = (E, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    linears: WeightShapes = {"attn.qkv": (3 * E, E), "attn.proj": (E, E)}
    linears |= {"mlp.gate_proj": (F, E), "mlp.up_proj": (F, E), "mlp.down_proj": (E, F)}
    norms: WeightShapes = {"norm1.weight": (E,), "norm2.weight": (E,)}
    merger = {"mlp.0": (merged, merged), "mlp.2": (config.out_features, merged)}
    return (
        {"model.visual.patch_embed.proj.weight": patch, "model.visual.merger.ln_q.weight": (E,)}
        | repeat_per_layer("model.visual.blocks", config.depth, norms | add_biases(linears))
        | add_biases({f"model.visual.merger.{name}": shape for name, shape in merger.items()})
    )
