"""The fast engine's decoder, its weights read from the checkpoint straight into their places."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lorgnette.lora.flat_params import FUSED_PROJECTIONS, AdapterShape, allocate_linear
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import EMBEDDING, LM_HEAD, TextConfig
from lorgnette.models.qwen2_vl.text_decoder import Decoder, DecoderLayer
from lorgnette.models.qwen2_vl.weights import load_weights_into


def load_decoder(checkpoint: BaseCheckpoint, shape: AdapterShape, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The decoder with room for an adapter of this shape, which `FlatAdapter.attach` puts there.

    Raises LorgnetteError where the files are broken or do not fit.
    """
    decoder, places = allocate_decoder(shape, device, dtype)
    load_weights_into(checkpoint, places)
    return decoder


def allocate_decoder(
    shape: AdapterShape, device: torch.device, dtype: torch.dtype
) -> tuple[Decoder, dict[str, Tensor]]:
    """The decoder with nothing in its memory yet, and the place of each of its weights by name."""
    text = shape.text
    layers = [_allocate_layer(shape, i, device, dtype) for i in range(text.num_layers)]
    embedding = torch.empty(text.vocab_size, text.hidden_size, device=device, dtype=dtype)
    head = embedding if text.tie_word_embeddings else torch.empty_like(embedding)
    norm = torch.empty(text.hidden_size, device=device, dtype=dtype)
    places = {EMBEDDING: embedding, "model.language_model.norm.weight": norm}
    if not text.tie_word_embeddings:
        places[LM_HEAD] = head
    for i, layer in enumerate(layers):
        places |= {f"model.language_model.layers.{i}.{name}": place for name, place in _name_weights(shape, layer)}
    return Decoder(text, embedding, layers, norm, head), places


def empty_adapter_shape(text: TextConfig) -> AdapterShape:
    """No adapter at all."""
    return AdapterShape(text, (), 1, 1.0)


def _allocate_layer(shape: AdapterShape, number: int, device: torch.device, dtype: torch.dtype) -> DecoderLayer:
    # Dropout's salt: seven projections a layer, so that no two masks are the same.
    qkv, o, gate_up, down = (
        allocate_linear(shape, group, 7 * number + first, device, dtype)
        for group, first in zip(FUSED_PROJECTIONS, (0, 3, 4, 6), strict=True)
    )
    norm1, norm2 = (torch.empty(shape.text.hidden_size, device=device, dtype=dtype) for _ in range(2))
    return DecoderLayer(norm1, qkv, o, norm2, gate_up, down)


def _name_weights(shape: AdapterShape, layer: DecoderLayer) -> Iterator[tuple[str, Tensor]]:
    """Where each of a layer's weights belongs, by its name in the layer."""
    yield "input_layernorm.weight", layer.input_norm
    yield "post_attention_layernorm.weight", layer.post_attention_norm
    for matrix, group in zip(layer.linears, FUSED_PROJECTIONS, strict=True):
        row = 0
        for target in group:
            rows = slice(row, row + shape.out_features(target))
            row = rows.stop
            block = "self_attn" if target.startswith(("q_", "k_", "v_", "o_")) else "mlp"
            yield f"{block}.{target}.weight", matrix.weight[rows, : matrix.in_features]
            if matrix.bias is not None:
                yield f"{block}.{target}.bias", matrix.bias[rows]
