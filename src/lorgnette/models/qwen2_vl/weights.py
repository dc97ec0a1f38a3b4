"""Names and shapes of Qwen2-VL's weights, as transformers names them now. Needs no torch."""

from lorgnette.models.family import EMBEDDING, LM_HEAD, name_linear
from lorgnette.models.model_config import TextConfig, VisionConfig, WeightShapes, add_biases, repeat_per_layer

_WITH_BIAS = ("q_proj", "k_proj", "v_proj")


def list_text_weights(config: TextConfig) -> WeightShapes:
    """Every weight of the decoder; a tied output layer is not listed."""
    norms = ("input_layernorm", "post_attention_layernorm")
    layer: WeightShapes = {f"{name}.weight": (config.hidden_size,) for name in norms}
    for name, shape in config.linear_shapes.items():
        module = name_linear(name)
        has_bias = config.has_qkv_bias and name in _WITH_BIAS
        layer |= add_biases({module: shape}) if has_bias else {f"{module}.weight": shape}
    embedding = (config.vocab_size, config.hidden_size)
    outer = {EMBEDDING: embedding, "model.language_model.norm.weight": (config.hidden_size,)}
    head = {} if config.tie_word_embeddings else {LM_HEAD: embedding}
    return outer | head | repeat_per_layer("model.language_model.layers", config.num_layers, layer)


def list_vision_weights(config: VisionConfig) -> WeightShapes:
    """Every weight of the tower and its merger."""
    E, F, merged = config.embed_dim, config.intermediate_size, config.embed_dim * config.merge_size**2
    patch = (E, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    linears: WeightShapes = {"attn.qkv": (3 * E, E), "attn.proj": (E, E), "mlp.fc1": (F, E), "mlp.fc2": (E, F)}
    block = add_biases(linears | {"norm1": (E,), "norm2": (E,)})
    merger = {"ln_q": (E,), "mlp.0": (merged, merged), "mlp.2": (config.out_features, merged)}
    return (
        {"model.visual.patch_embed.proj.weight": patch}
        | repeat_per_layer("model.visual.blocks", config.depth, block)
        | add_biases({f"model.visual.merger.{name}": shape for name, shape in merger.items()})
    )
