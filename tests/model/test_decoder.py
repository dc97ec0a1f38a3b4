"""Layers that are run again in the backward pass change nothing. (The numbers: parity/test_fast.py.)"""

from pathlib import Path

import pytest
import torch

from lorgnette.config import LANGUAGE_TARGETS
from lorgnette.encode.encoder import Encoder
from lorgnette.encode.pack import pack
from lorgnette.model import decoder as decoders
from lorgnette.model.build import decoder_of
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.contract import Contract
from lorgnette.model.decoder import Decoder
from lorgnette.model.fast import Room, Station
from lorgnette.model.flat import AdapterShape, FlatAdapter
from lorgnette.model.kernels.dropout import Mask
from lorgnette.model.shapes import TextShape, config_of
from lorgnette.types import Example

CPU = torch.device("cpu")
Made = tuple[Decoder, FlatAdapter, Station]


@pytest.fixture
def made(tiny: Path, contract: Contract, conversations: list[Example]) -> Made:
    """A decoder with a lively adapter, and a batch whose picture rows hold noise."""
    checkpoint, encoder = Checkpoint.at(tiny), Encoder.of_folder(tiny, contract.encode)
    shape = AdapterShape(TextShape.of(config_of(checkpoint)), LANGUAGE_TARGETS, 4, 2.0)
    decoder, adapter = decoder_of(checkpoint, shape, CPU, torch.float32), FlatAdapter(shape, CPU)
    torch.manual_seed(0)
    adapter.take(torch.randn(adapter.values.shape) * 0.1)
    adapter.attach(decoder)
    batch = pack([encoder.encode(example) for example in conversations], 10, share="tree")
    station = Station(Room.of(batch, padded=False), decoder)
    station.fill(batch, 3)
    station.x.normal_(0, 0.1)
    return decoder, adapter, station


def stepped(made: Made, again: int, dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
    decoder, adapter, station = made
    assert adapter.values.grad is not None
    adapter.values.grad.zero_()
    with torch.no_grad():
        mask = Mask(station.key, dropout) if dropout else None
        passed = decoder.forward(station.x, station.rows, mask, again=again)
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


def test_logits_made_in_parts_are_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, gradient = stepped(made, 0, 0.0)
    monkeypatch.setattr(decoders, "LABELS_AT_ONCE", 3)
    same, also = stepped(made, 0, 0.0)
    torch.testing.assert_close(same, losses)
    torch.testing.assert_close(also, gradient)


def test_the_gradient_is_the_losses_slope(made: Made) -> None:
    """Along a random direction of the adapter's values, by differences."""
    decoder, adapter, station = made
    _, gradient = stepped(made, 0, 0.0)
    before, spread = adapter.values.detach().clone(), adapter.attach(decoder)
    direction = gradient / gradient.norm()
    found = []
    for step in (1e-2, -1e-2):
        adapter.take(before + step * direction)
        spread()
        found.append((stepped(made, 0, 0.0)[0] * station.rows.weights).sum().item())
    assert (found[0] - found[1]) / 2e-2 == pytest.approx(gradient.norm().item(), rel=2e-2)
