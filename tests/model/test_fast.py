"""Rooms that passes are padded to, and that padding is not seen. (The numbers: parity/test_fast.py.)"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorgnette.encode.encoder import Encoder
from lorgnette.encode.pack import Share, pack
from lorgnette.model import fast_model
from lorgnette.model.adapter_files import SavedAdapter
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.contract import Contract
from lorgnette.model.fast import FastEngine, Room, Station, _drawn, _last_rows
from lorgnette.types import Example, PackedBatch


@pytest.fixture(scope="module")
def packed(tiny: Path, contract: Contract, conversations: list[Example]) -> Callable[[Share], PackedBatch]:
    encoder = Encoder.of_folder(tiny, contract.encode)
    encoded = [encoder.encode(example) for example in conversations]
    return lambda share: pack(encoded, 10, share=share)


@pytest.fixture(scope="module")
def engine(tiny: Path, saved: Path, contract: Contract) -> FastEngine:
    checkpoint, rule = Checkpoint.at(tiny), Encoder.of_folder(tiny, contract.encode).rule
    features = fast_model.features_of(checkpoint, rule, torch.device("cpu"), torch.float32)
    model = fast_model.opened(checkpoint, SavedAdapter.read(saved), features, torch.float32)
    assert model.adapter is not None
    return FastEngine(model.decoder, model.adapter, features, dropout=0.0, seed=0)


@pytest.mark.parametrize("share", ["none", "tree"])
def test_padding_changes_neither_loss_nor_gradient(engine: FastEngine, packed: Callable, share: Share) -> None:
    batch = packed(share)
    engine.features.prepare(batch.grids)
    grad = engine.adapter.values.grad
    assert grad is not None
    grad.zero_()
    loss, wanted = engine.backward(batch, 0), grad.clone()
    entered = engine._entered(batch)
    room = Room.of(batch, padded=True)
    exact = Room.of(batch, padded=False)
    room = replace(room, rows=max(room.rows, exact.rows + room.last - exact.last))  # plain attention: a key for each
    if room.keys is not None and exact.keys is not None:
        room = replace(room, keys=max(room.keys, exact.keys + room.rows - exact.rows))
    station = Station(room, engine.decoder)
    station.fill(batch, 0)
    station.x[: exact.rows] = entered.x
    grad.zero_()
    engine._computed(station)
    torch.testing.assert_close(station.loss, loss)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)
    assert wanted.any()


@pytest.mark.parametrize("share", ["none", "tree"])
def test_a_room_holds_what_it_was_made_for(packed: Callable, share: Share) -> None:
    batch = packed(share)
    exact, room = (Room.of(batch, padded=padded) for padded in (False, True))
    need = replace(exact, segments=exact.segments + 1)
    assert (exact.keys is None) == (share == "none")
    assert exact.rows == len(batch.tokens) < room.rows
    assert room.holds(need)
    assert not exact.holds(need)
    assert not room.holds(replace(need, labels=room.labels + 1))
    assert not room.holds(replace(need, keys=1 if need.keys is None else None))
    assert not replace(room, rows=room.rows * 4).holds(need), "too much of it would be padding"


def test_last_rows_begin_with_what_predicts(packed: Callable) -> None:
    batch = packed("none")
    rows, borders = _last_rows(batch)
    assert set(batch.label_rows) <= set(rows)
    assert borders[-1] == len(rows)
    for i, (start, end) in enumerate(zip(batch.starts[:-1], batch.starts[1:], strict=True)):
        labels = batch.label_rows[(batch.label_rows >= start) & (batch.label_rows < end)]
        np.testing.assert_array_equal(rows[borders[i] : borders[i + 1]], np.arange(labels.min(), end))


def test_keys_of_dropout_are_all_different() -> None:
    keys = {_drawn(seed, number) for seed in range(20) for number in range(100)}
    assert len(keys) == 2000
    assert all(0 <= key < 2**31 for key in keys)
