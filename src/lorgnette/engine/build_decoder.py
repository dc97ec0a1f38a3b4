"""The fast engine's decoder, its weights read from the checkpoint straight into their places."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lorgnette.lora.flat_params import GROUPS, AdapterShape, linear
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.models.qwen2_vl.config import EMBEDDING, HEAD, TextShape
from lorgnette.models.qwen2_vl.text_decoder import Decoder, Layer
from lorgnette.models.qwen2_vl.weights import read_into


def decoder_of(checkpoint: Checkpoint, shape: AdapterShape, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The decoder with room for an adapter of this shape, which `FlatAdapter.attach` puts there.

    Raises LorgnetteError where the files are broken or do not fit.
    """
    decoder, places = blank(shape, device, dtype)
    read_into(checkpoint, places)
    return decoder


def blank(shape: AdapterShape, device: torch.device, dtype: torch.dtype) -> tuple[Decoder, dict[str, Tensor]]:
    """The decoder with nothing in its memory yet, and the place of each of its weights by name."""
    text = shape.text
    layers = [_layer(shape, i, device, dtype) for i in range(text.layers)]
    embedding = torch.empty(text.vocab, text.hidden, device=device, dtype=dtype)
    head = embedding if text.tied else torch.empty_like(embedding)
    norm = torch.empty(text.hidden, device=device, dtype=dtype)
    places = {EMBEDDING: embedding, "model.language_model.norm.weight": norm}
    if not text.tied:
        places[HEAD] = head
    for i, layer in enumerate(layers):
        places |= {f"model.language_model.layers.{i}.{name}": place for name, place in _places(shape, layer)}
    return Decoder(text, embedding, layers, norm, head), places


def bare(text: TextShape) -> AdapterShape:
    """No adapter at all."""
    return AdapterShape(text, (), 1, 1.0)


def _layer(shape: AdapterShape, number: int, device: torch.device, dtype: torch.dtype) -> Layer:
    # Dropout's salt: seven projections a layer, so that no two masks are the same.
    qkv, o, gate_up, down = (
        linear(shape, group, 7 * number + first, device, dtype)
        for group, first in zip(GROUPS, (0, 3, 4, 6), strict=True)
    )
    norm1, norm2 = (torch.empty(shape.text.hidden, device=device, dtype=dtype) for _ in range(2))
    return Layer(norm1, qkv, o, norm2, gate_up, down)


def _places(shape: AdapterShape, layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """Where each of a layer's weights belongs, by its name in the layer."""
    yield "input_layernorm.weight", layer.norm1
    yield "post_attention_layernorm.weight", layer.norm2
    for matrix, group in zip(layer.linears, GROUPS, strict=True):
        row = 0
        for target in group:
            rows = slice(row, row + shape.outputs(target))
            row = rows.stop
            block = "self_attn" if target.startswith(("q_", "k_", "v_", "o_")) else "mlp"
            yield f"{block}.{target}.weight", matrix.weight[rows, : matrix.inputs]
            if matrix.bias is not None:
                yield f"{block}.{target}.bias", matrix.bias[rows]
