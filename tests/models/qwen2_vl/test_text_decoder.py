"""What is left out, run again or made in parts changes nothing. (The numbers: parity/test_fast.py.)"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorgnette.config import TARGET_MODULES
from lorgnette.engine.build_decoder import load_decoder
from lorgnette.engine.fast import BatchShape, StaticInputs
from lorgnette.kernels.dropout import Dropout
from lorgnette.kernels.gather_sum import GatherSegments, build_segments
from lorgnette.lora.flat_params import AdapterShape, FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl import text_decoder as decoders
from lorgnette.models.qwen2_vl.config import TextConfig, load_hf_config
from lorgnette.models.qwen2_vl.text_decoder import Decoder, DecoderInputs
from lorgnette.processing.packing import Share, pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example, PackedBatch

CPU = torch.device("cpu")
Made = tuple[Decoder, FlatLoraParams, StaticInputs]


@pytest.fixture
def encoded(tiny: Path, contract: AdapterMetadata, conversations: list[Example]) -> list[Encoded]:
    encoder = Processor.from_folder(tiny, contract.processor)
    return [encoder.encode(example) for example in conversations]


@pytest.fixture
def lively(tiny: Path) -> tuple[Decoder, FlatLoraParams]:
    """A decoder with a lively adapter."""
    checkpoint = BaseCheckpoint.from_folder(tiny)
    shape = AdapterShape(TextConfig.from_hf_config(load_hf_config(checkpoint)), TARGET_MODULES, 4, 2.0)
    decoder, adapter = load_decoder(checkpoint, shape, CPU, torch.float32), FlatLoraParams(shape, CPU)
    torch.manual_seed(0)
    adapter.copy_from(torch.randn(adapter.values.shape) * 0.1)
    adapter.attach(decoder)
    return decoder, adapter


@pytest.fixture
def made(lively: tuple[Decoder, FlatLoraParams], encoded: list[Encoded]) -> Made:
    return *lively, stationed(lively[0], pack(encoded, 10, prefix_sharing="tree"))


def stationed(decoder: Decoder, batch: PackedBatch) -> StaticInputs:
    """The batch, with noise in every row for what is embedded."""
    station = StaticInputs(BatchShape.from_batch(batch), decoder)
    station.copy_from(batch, 3)
    torch.manual_seed(1)
    station.x.normal_(0, 0.1)
    return station


def stepped(
    made: Made, again: int = 0, dropout: float = 0.0, rows: DecoderInputs | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every label's loss, and the gradient. rows: other ones than the station's."""
    decoder, adapter, station = made
    assert adapter.values.grad is not None
    adapter.values.grad.zero_()
    with torch.no_grad():
        mask = Dropout(station.dropout_key, dropout) if dropout else None
        passed = decoder.forward(station.x, rows or station.batch, mask, recompute_layers=again)
        losses, dx = decoder.compute_losses_and_grad(passed)
        torch.testing.assert_close(decoder.compute_losses(passed), losses)
        decoder.backward(passed, dx)
    return losses, adapter.values.grad.clone()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_running_layers_again_changes_nothing(made: Made, dropout: float) -> None:
    losses, gradient = stepped(made, 0, dropout)
    assert gradient.any()
    for again in (1, 2):
        same, also = stepped(made, again, dropout)
        assert torch.equal(same, losses)
        assert torch.equal(also, gradient)


def test_a_pass_that_memory_does_not_hold_leaves_no_work_under_way(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[bool] = []
    monkeypatch.setattr(made[0]._side_stream, "join", lambda: joined.append(True))
    stepped(made)
    assert joined

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    joined.clear()
    monkeypatch.setattr(made[0], "_attention_backward", full)
    with pytest.raises(torch.OutOfMemoryError):
        stepped(made)
    assert joined


@pytest.mark.parametrize(("which", "share"), [(slice(None), "tree"), (slice(None), "none"), (slice(1, 2), "none")])
def test_the_last_layer_leaves_out_what_predicts_nothing(
    lively: tuple[Decoder, FlatLoraParams], encoded: list[Encoded], which: slice, share: Share
) -> None:
    """The second conversation has two answers: its first labels are in the middle, and rows without any follow."""
    batch = pack(encoded[which], 10, prefix_sharing=share)
    made = *lively, stationed(lively[0], batch)
    rows, T = made[2].batch, len(batch.input_ids)
    assert len(np.unique(batch.label_indices)) == len(rows.last_attention_plan.query_indices) < T
    copies = GatherSegments(*map(torch.from_numpy, build_segments(batch.label_indices, T)))
    every = replace(
        rows, last_sight=rows.attention_plan, label_rows=torch.from_numpy(batch.label_indices), label_copies=copies
    )
    losses, gradient = stepped(made)
    whole, also = stepped(made, rows=every)
    torch.testing.assert_close(losses, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, also, atol=1e-5, rtol=1e-4)
    moved = replace(every, label_rows=every.label_indices - 1)
    assert (stepped(made, rows=moved)[0] - whole).abs().max() > 0.1  # the comparison can fail


def test_a_row_may_predict_several_labels(lively: tuple[Decoder, FlatLoraParams], encoded: list[Encoded]) -> None:
    """As where examples share a row and go on differently: losses stand side by side, gradients add up."""
    one = pack(encoded, 10)
    other = replace(one, targets=one.targets[::-1].copy(), weights=one.label_weights * 3)
    both = replace(
        one, label_rows=np.tile(one.label_indices, 2), targets=np.concatenate([one.targets, other.targets]),
        weights=np.concatenate([one.label_weights, other.label_weights]),
    )  # fmt: skip
    (first, a), (second, b), (losses, gradient) = (
        stepped((*lively, stationed(lively[0], batch))) for batch in (one, other, both)
    )
    torch.testing.assert_close(losses, torch.cat([first, second]))
    torch.testing.assert_close(gradient, a + b, atol=1e-5, rtol=1e-4)
    assert (first - second).abs().max() > 0.1


def test_logits_made_in_parts_are_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, gradient = stepped(made)
    monkeypatch.setattr(decoders, "LABELS_PER_CHUNK", 3)
    same, also = stepped(made)
    torch.testing.assert_close(same, losses)
    torch.testing.assert_close(also, gradient)


def test_the_gradient_is_the_losses_slope(made: Made) -> None:
    """Along itself, by differences."""
    decoder, adapter, station = made
    _, gradient = stepped(made)
    before, spread = adapter.values.detach().clone(), adapter.attach(decoder)
    direction = gradient / gradient.norm()
    found = []
    for step in (1e-2, -1e-2):
        adapter.copy_from(before + step * direction)
        spread()
        found.append((stepped(made)[0] * station.batch.label_weights).sum().item())
    assert (found[0] - found[1]) / 2e-2 == pytest.approx(gradient.norm().item(), rel=2e-2)
