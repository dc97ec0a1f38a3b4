"""Recomputing layers, leaving out tokens and chunking logits change nothing (the values: parity/test_fast.py).

Where it matters for Qwen3-VL's decoder, too, with deepstack behind every layer.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorgnette.config import TARGET_MODULES
from lorgnette.engine.batch_shapes import BatchShape
from lorgnette.engine.cuda_graphs import StaticInputs
from lorgnette.engine.loading import load_decoder
from lorgnette.kernels.dropout import Dropout
from lorgnette.kernels.gather_sum import GatherSegments, build_segments
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl import text_decoder
from lorgnette.models.qwen2_vl.text_decoder import Decoder, DecoderInputs
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example, PackedBatch

CPU = torch.device("cpu")
Prepared = tuple[Decoder, FlatLoraParams, StaticInputs]
BOTH_FAMILIES = pytest.mark.parametrize("folder", [None, "qwen3_vl"], indirect=True, ids=["qwen2_vl", "qwen3_vl"])


@pytest.fixture
def folder(request: pytest.FixtureRequest, tiny: Path, tiny_family: Callable[[str], Path]) -> Path:
    """The tiny Qwen2-VL, or the family that a test names."""
    return tiny_family(request.param) if getattr(request, "param", None) else tiny


@pytest.fixture
def encoded(folder: Path, adapter_metadata: AdapterMetadata, conversations: list[Example]) -> list[Encoded]:
    encoder = Processor.from_folder(folder, adapter_metadata.processor)
    return [encoder.encode(example) for example in conversations]


@pytest.fixture
def decoder_with_adapter(folder: Path) -> tuple[Decoder, FlatLoraParams]:
    """A decoder whose adapter is not zero."""
    checkpoint = BaseCheckpoint.from_folder(folder)
    shape = AdapterShape(checkpoint.load_text_config(), TARGET_MODULES, 4, 2.0)
    decoder, adapter = load_decoder(checkpoint, shape, CPU, torch.float32), FlatLoraParams(shape, CPU)
    torch.manual_seed(0)
    adapter.copy_from(torch.randn(adapter.values.shape) * 0.1)
    adapter.attach(decoder)
    return decoder, adapter


@pytest.fixture
def prepared(decoder_with_adapter: tuple[Decoder, FlatLoraParams], encoded: list[Encoded]) -> Prepared:
    return *decoder_with_adapter, fill_inputs(decoder_with_adapter[0], pack(encoded, 10, prefix_sharing=True))


def fill_inputs(decoder: Decoder, batch: PackedBatch) -> StaticInputs:
    """The batch, with noise instead of embeddings."""
    inputs = StaticInputs(BatchShape.from_batch(batch), decoder)
    inputs.copy_from(batch)
    torch.manual_seed(1)
    inputs.x.normal_(0, 0.1)
    if decoder.config.num_deepstack_levels:
        level_embeds = torch.randn(len(decoder.layers), *inputs.x.shape) * 0.1
        inputs.batch = replace(inputs.batch, level_embeds=level_embeds)
    return inputs


def run_step(
    prepared: Prepared, recompute_layers: int = 0, dropout: float = 0.0, batch: DecoderInputs | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of every label, and the gradient. batch: replaces that of the static inputs."""
    decoder, adapter, inputs = prepared
    assert adapter.values.grad is not None
    adapter.values.grad.zero_()
    with torch.no_grad():
        dropout_state = Dropout(inputs.dropout_keys, dropout) if dropout else None
        context = decoder.forward(inputs.x, batch or inputs.batch, dropout_state, recompute_layers=recompute_layers)
        losses, dx = decoder.compute_losses_and_grad(context)
        torch.testing.assert_close(decoder.compute_losses(context), losses)
        decoder.backward(context, dx)
    return losses, adapter.values.grad.clone()


@BOTH_FAMILIES
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputing_layers_changes_nothing(prepared: Prepared, dropout: float) -> None:
    losses, gradient = run_step(prepared, 0, dropout)
    assert gradient.any()
    for recompute_layers in (1, len(prepared[0].layers)):
        same_losses, same_gradient = run_step(prepared, recompute_layers, dropout)
        assert torch.equal(same_losses, losses)
        assert torch.equal(same_gradient, gradient)


@BOTH_FAMILIES
@torch.no_grad()
def test_a_layer_that_saves_nothing_computes_the_same(prepared: Prepared) -> None:
    """As generation and the recomputed layers of the forward pass run it."""
    decoder, _, inputs = prepared
    context = decoder.forward(inputs.x, inputs.batch, None)
    layer, plan = decoder.layers[0], inputs.batch.attention_plan

    def attention(qkv: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> torch.Tensor | None:
        return text_decoder.attention_forward(qkv, plan, layer.num_heads, out, values)

    x1, out, saved = layer.forward(inputs.x, None, context.cos_sin, attention)
    same_x1, same_out, activations = layer.forward(inputs.x, None, context.cos_sin, attention, save=True)
    assert saved is None
    assert activations is not None
    assert torch.equal(x1, same_x1)
    assert torch.equal(out, same_out)
    base = layer.forward(inputs.x, None, context.cos_sin, attention, use_adapter=False)
    assert (base[1] - out).abs().max() > 1e-3  # negative control


def test_out_of_memory_joins_the_side_stream(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[bool] = []
    monkeypatch.setattr(prepared[0]._side_stream, "join", lambda: joined.append(True))
    run_step(prepared)
    assert joined

    def raise_oom(*_: object) -> None:
        raise torch.OutOfMemoryError

    joined.clear()
    monkeypatch.setattr(text_decoder, "attention_backward", raise_oom)
    with pytest.raises(torch.OutOfMemoryError):
        run_step(prepared)
    assert joined


@pytest.mark.parametrize(
    ("folder", "examples", "prefix_sharing"),
    [
        (None, slice(None), True),
        (None, slice(None), False),
        (None, slice(1, 2), False),
        ("qwen3_vl", slice(None), True),
    ],
    indirect=["folder"],
)
def test_the_last_layer_leaves_out_tokens_without_labels(
    decoder_with_adapter: tuple[Decoder, FlatLoraParams], encoded: list[Encoded], examples: slice, prefix_sharing: bool
) -> None:
    """The second conversation has two answers: its first labels are in the middle, tokens without labels follow."""
    batch = pack(encoded[examples], 10, prefix_sharing=prefix_sharing)
    prepared = *decoder_with_adapter, fill_inputs(decoder_with_adapter[0], batch)
    inputs, T = prepared[2].batch, len(batch.input_ids)
    assert len(np.unique(batch.label_indices)) == len(inputs.last_attention_plan.query_indices) < T
    segments = GatherSegments(*map(torch.from_numpy, build_segments(batch.label_indices, T)))
    all_tokens = replace(
        inputs,
        last_attention_plan=inputs.attention_plan,
        label_indices=torch.from_numpy(batch.label_indices),
        label_segments=segments,
    )
    losses, gradient = run_step(prepared)
    all_losses, same_gradient = run_step(prepared, batch=all_tokens)
    torch.testing.assert_close(losses, all_losses, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, same_gradient, atol=1e-5, rtol=1e-4)
    shifted = replace(all_tokens, label_indices=all_tokens.label_indices - 1)
    assert (run_step(prepared, batch=shifted)[0] - all_losses).abs().max() > 0.1  # negative control
    if len(inputs.level_embeds):  # the last layer's level reaches the losses
        without_last = replace(all_tokens, level_embeds=inputs.level_embeds[:-1])
        assert (run_step(prepared, batch=without_last)[0] - all_losses).abs().max() > 0.01


def test_a_token_may_predict_several_labels(
    decoder_with_adapter: tuple[Decoder, FlatLoraParams], encoded: list[Encoded]
) -> None:
    """As when examples that share a prefix continue differently: losses are listed, gradients are summed."""
    first_batch = pack(encoded, 10)
    second_batch = replace(
        first_batch, targets=first_batch.targets[::-1].copy(), label_weights=first_batch.label_weights * 3
    )
    joint_batch = replace(
        first_batch,
        label_indices=np.tile(first_batch.label_indices, 2),
        targets=np.concatenate([first_batch.targets, second_batch.targets]),
        label_weights=np.concatenate([first_batch.label_weights, second_batch.label_weights]),
    )
    (first_losses, first_grad), (second_losses, second_grad), (losses, gradient) = (
        run_step((*decoder_with_adapter, fill_inputs(decoder_with_adapter[0], batch)))
        for batch in (first_batch, second_batch, joint_batch)
    )
    torch.testing.assert_close(losses, torch.cat([first_losses, second_losses]))
    torch.testing.assert_close(gradient, first_grad + second_grad, atol=1e-5, rtol=1e-4)
    assert (first_losses - second_losses).abs().max() > 0.1


def test_chunked_logits_give_the_same_losses(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, gradient = run_step(prepared)
    monkeypatch.setattr(text_decoder, "LABELS_PER_CHUNK", 3)
    same_losses, same_gradient = run_step(prepared)
    torch.testing.assert_close(same_losses, losses)
    torch.testing.assert_close(same_gradient, gradient)


@BOTH_FAMILIES
def test_the_gradient_is_the_slope_of_the_loss(prepared: Prepared) -> None:
    """By finite differences along the gradient."""
    decoder, adapter, inputs = prepared
    _, gradient = run_step(prepared)
    before, sync_weights = adapter.values.detach().clone(), adapter.attach(decoder)
    direction = gradient / gradient.norm()
    totals = []
    for step in (1e-2, -1e-2):
        adapter.copy_from(before + step * direction)
        sync_weights()
        totals.append((run_step(prepared)[0] * inputs.batch.label_weights).sum().item())
    assert (totals[0] - totals[1]) / 2e-2 == pytest.approx(gradient.norm().item(), rel=2e-2)
