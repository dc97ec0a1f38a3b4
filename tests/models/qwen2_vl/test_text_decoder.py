"""What is left out, run again or made in parts changes nothing. (The numbers: parity/test_fast.py.)"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorgnette.config import LANGUAGE_TARGETS
from lorgnette.engine.build_decoder import decoder_of
from lorgnette.engine.fast import Room, Station
from lorgnette.kernels.dropout import Mask
from lorgnette.kernels.gather_sum import Copies, copies_of
from lorgnette.lora.flat_params import AdapterShape, FlatAdapter
from lorgnette.lora.metadata import Contract
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.models.qwen2_vl import text_decoder as decoders
from lorgnette.models.qwen2_vl.config import TextShape, config_of
from lorgnette.models.qwen2_vl.text_decoder import Decoder, Rows
from lorgnette.processing.packing import Share, pack
from lorgnette.processing.processor import Encoder
from lorgnette.types import Encoded, Example, PackedBatch

CPU = torch.device("cpu")
Made = tuple[Decoder, FlatAdapter, Station]


@pytest.fixture
def encoded(tiny: Path, contract: Contract, conversations: list[Example]) -> list[Encoded]:
    encoder = Encoder.of_folder(tiny, contract.encode)
    return [encoder.encode(example) for example in conversations]


@pytest.fixture
def lively(tiny: Path) -> tuple[Decoder, FlatAdapter]:
    """A decoder with a lively adapter."""
    checkpoint = Checkpoint.at(tiny)
    shape = AdapterShape(TextShape.of(config_of(checkpoint)), LANGUAGE_TARGETS, 4, 2.0)
    decoder, adapter = decoder_of(checkpoint, shape, CPU, torch.float32), FlatAdapter(shape, CPU)
    torch.manual_seed(0)
    adapter.take(torch.randn(adapter.values.shape) * 0.1)
    adapter.attach(decoder)
    return decoder, adapter


@pytest.fixture
def made(lively: tuple[Decoder, FlatAdapter], encoded: list[Encoded]) -> Made:
    return *lively, stationed(lively[0], pack(encoded, 10, share="tree"))


def stationed(decoder: Decoder, batch: PackedBatch) -> Station:
    """The batch, with noise in every row for what is embedded."""
    station = Station(Room.of(batch), decoder)
    station.fill(batch, 3)
    torch.manual_seed(1)
    station.x.normal_(0, 0.1)
    return station


def stepped(
    made: Made, again: int = 0, dropout: float = 0.0, rows: Rows | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every label's loss, and the gradient. rows: other ones than the station's."""
    decoder, adapter, station = made
    assert adapter.values.grad is not None
    adapter.values.grad.zero_()
    with torch.no_grad():
        mask = Mask(station.key, dropout) if dropout else None
        passed = decoder.forward(station.x, rows or station.rows, mask, again=again)
        losses, dx = decoder.losses_and_gradient(passed)
        torch.testing.assert_close(decoder.losses(passed), losses)
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
    monkeypatch.setattr(made[0]._beside, "join", lambda: joined.append(True))
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
    lively: tuple[Decoder, FlatAdapter], encoded: list[Encoded], which: slice, share: Share
) -> None:
    """The second conversation has two answers: its first labels are in the middle, and rows without any follow."""
    batch = pack(encoded[which], 10, share=share)
    made = *lively, stationed(lively[0], batch)
    rows, T = made[2].rows, len(batch.tokens)
    assert len(np.unique(batch.label_rows)) == len(rows.last_sight.rows) < T
    copies = Copies(*map(torch.from_numpy, copies_of(batch.label_rows, T)))
    every = replace(rows, last_sight=rows.sight, label_rows=torch.from_numpy(batch.label_rows), label_copies=copies)
    losses, gradient = stepped(made)
    whole, also = stepped(made, rows=every)
    torch.testing.assert_close(losses, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, also, atol=1e-5, rtol=1e-4)
    moved = replace(every, label_rows=every.label_rows - 1)
    assert (stepped(made, rows=moved)[0] - whole).abs().max() > 0.1  # the comparison can fail


def test_a_row_may_predict_several_labels(lively: tuple[Decoder, FlatAdapter], encoded: list[Encoded]) -> None:
    """As where examples share a row and go on differently: losses stand side by side, gradients add up."""
    one = pack(encoded, 10)
    other = replace(one, targets=one.targets[::-1].copy(), weights=one.weights * 3)
    both = replace(
        one, label_rows=np.tile(one.label_rows, 2), targets=np.concatenate([one.targets, other.targets]),
        weights=np.concatenate([one.weights, other.weights]),
    )  # fmt: skip
    (first, a), (second, b), (losses, gradient) = (
        stepped((*lively, stationed(lively[0], batch))) for batch in (one, other, both)
    )
    torch.testing.assert_close(losses, torch.cat([first, second]))
    torch.testing.assert_close(gradient, a + b, atol=1e-5, rtol=1e-4)
    assert (first - second).abs().max() > 0.1


def test_logits_made_in_parts_are_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, gradient = stepped(made)
    monkeypatch.setattr(decoders, "LABELS_AT_ONCE", 3)
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
        adapter.take(before + step * direction)
        spread()
        found.append((stepped(made)[0] * station.rows.weights).sum().item())
    assert (found[0] - found[1]) / 2e-2 == pytest.approx(gradient.norm().item(), rel=2e-2)
