"""Names and shapes of Qwen3-VL's weights, as transformers names them now. Needs no torch."""

from lorgnette.models.model_config import TextConfig, VisionConfig, WeightShapes, add_biases, repeat_per_layer
from lorgnette.models.qwen2_vl import weights as qwen2_vl_weights

__all__ = ["list_text_weights", "list_vision_weights"]


def list_text_weights(config: TextConfig) -> WeightShapes:
    """Every weight of the decoder; a tied output layer is not listed."""
    norms: WeightShapes = {f"self_attn.{name}_norm.weight": (config.head_dim,) for name in "qk"}
    layers = repeat_per_layer("model.language_model.layers", config.num_layers, norms)
    return qwen2_vl_weights.list_text_weights(config) | layers


def list_vision_weights(config: VisionConfig) -> WeightShapes:
    """Every weight of the tower, its merger and the mergers of deepstack."""
    E, F, merged = config.embed_dim, config.intermediate_size, config.embed_dim * config.merge_size**2
    patch = (E, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    block: WeightShapes = {"attn.qkv": (3 * E, E), "attn.proj": (E, E), "mlp.linear_fc1": (F, E)}
    block |= {"mlp.linear_fc2": (E, F), "norm1": (E,), "norm2": (E,)}
    linears: WeightShapes = {"linear_fc1": (merged, merged), "linear_fc2": (config.out_features, merged)}
    mergers = {f"merger.{name}": shape for name, shape in ({"norm": (E,)} | linears).items()}
    for level in range(len(config.deepstack_blocks)):
        # Its norm is over the merged patches, unlike the last merger's.
        named = {"norm": (merged,)} | linears
        mergers |= {f"deepstack_merger_list.{level}.{name}": shape for name, shape in named.items()}
    return (
        add_biases({"model.visual.patch_embed.proj": patch})
        | {"model.visual.pos_embed.weight": (config.position_table**2, E)}
        | repeat_per_layer("model.visual.blocks", config.depth, add_biases(block))
        | add_biases({f"model.visual.{name}": shape for name, shape in mergers.items()})
    )
