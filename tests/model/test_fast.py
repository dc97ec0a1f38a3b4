"""Rooms that passes are padded to, and that padding is not seen. (The numbers: parity/test_fast.py.)"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.encode.encoder import Encoder
from lorgnette.encode.pack import Share, pack
from lorgnette.model import fast_model
from lorgnette.model.adapter_files import SavedAdapter
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.contract import Contract
from lorgnette.model.fast import FastEngine, Room, Station, _drawn, _last_rows
from lorgnette.types import Encoded, Example, PackedBatch

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def encoded(tiny: Path, contract: Contract, conversations: list[Example]) -> list[Encoded]:
    encoder = Encoder.of_folder(tiny, contract.encode)
    return [encoder.encode(example) for example in conversations]


@pytest.fixture(scope="module")
def packed(encoded: list[Encoded]) -> Callable[[Share], PackedBatch]:
    return lambda share: pack(encoded, 10, share=share)


@pytest.fixture(scope="module")
def make_engine(tiny: Path, saved: Path, contract: Contract) -> Callable[..., FastEngine]:
    """make_engine(0.3[, seed=, grouped=, device=, dtype=]) → with the saved adapter and so much dropout."""
    checkpoint, rule = Checkpoint.at(tiny), Encoder.of_folder(tiny, contract.encode).rule

    def make(dropout: float = 0.0, *, device: str = "cpu", dtype: Any = torch.float32, **named: Any) -> FastEngine:
        features = fast_model.features_of(checkpoint, rule, torch.device(device), dtype)
        model = fast_model.opened(checkpoint, SavedAdapter.read(saved), features, dtype)
        assert model.adapter is not None
        return FastEngine(model.decoder, model.adapter, features, dropout=dropout, **{"seed": 0, **named})

    return make


def passed(engine: FastEngine, batch: PackedBatch, draw: int = 0) -> tuple[float, Tensor]:
    """Loss and gradient of one pass."""
    engine.features.prepare(batch.grids)
    grad = engine.adapter.values.grad
    assert grad is not None
    grad.zero_()
    return engine.backward(batch, draw).item(), grad.clone()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("share", ["none", "tree"])
def test_padding_changes_neither_loss_nor_gradient(
    make_engine: Callable[..., FastEngine], packed: Callable, share: Share, dropout: float
) -> None:
    engine, batch = make_engine(dropout), packed(share)
    loss, wanted = passed(engine, batch)
    exact, room = Room.of(batch), Room.of(batch).padded()
    station, entered = Station(room, engine.decoder), engine._entered(batch)
    station.fill(batch, _drawn(0, 0))
    station.x[: exact.rows] = entered.x
    station.x[exact.rows :].normal_()  # as an earlier, longer batch left it
    grad = engine.adapter.values.grad
    assert grad is not None
    grad.zero_()
    engine._computed(station)
    assert station.loss.item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)
    assert wanted.any()
    station.rows.weights[len(batch.targets) - 9 :] = 1.0  # padding that weighs, and labels that weigh otherwise, are
    grad.zero_()  # seen: the comparison can fail
    engine._computed(station)
    assert station.loss.item() != pytest.approx(loss, rel=1e-2)
    assert (grad - wanted).abs().max() > 1e-4


def test_a_draw_says_what_is_dropped(make_engine: Callable[..., FastEngine], packed: Callable) -> None:
    batch, engine = packed("none"), make_engine(0.3)
    loss, gradient = passed(engine, batch, 5)
    same, also = passed(make_engine(0.3), batch, 5)
    assert same == loss
    assert torch.equal(also, gradient)
    plain = passed(make_engine(), batch)[0]
    for other in (passed(engine, batch, 6)[0], passed(make_engine(0.3, seed=1), batch, 5)[0]):
        assert other not in (loss, plain)
    assert engine.loss(batch).item() == pytest.approx(plain, rel=1e-6)
    before = engine.adapter.values.grad
    assert before is not None
    engine.backward(batch, 5)
    twice = before.clone()
    engine.backward(batch, 5)
    torch.testing.assert_close(before - twice, gradient, rtol=1e-4, atol=1e-5)  # gradients are added up


def test_rows_are_shared_where_masks_are(make_engine: Callable[..., FastEngine]) -> None:
    assert make_engine().share == "tree"
    assert make_engine(0.3).share == "none"
    assert make_engine(0.3, grouped=True).share == "tree"
    assert make_engine(0.3).share_in_evaluation == "tree"


@pytest.mark.parametrize("share", ["none", "tree"])
def test_a_room_holds_what_it_was_made_for(packed: Callable, share: Share) -> None:
    batch = packed(share)
    exact, room = Room.of(batch), Room.of(batch).padded()
    assert (exact.keys is None) == (share == "none")
    assert exact.rows == len(batch.tokens) < room.rows
    assert room.holds(exact)
    assert not exact.holds(exact), "no row for padding keys to be"
    assert not room.holds(replace(exact, labels=room.labels + 1))
    assert not room.holds(replace(exact, keys=1 if exact.keys is None else None))
    assert not replace(room, rows=room.rows * 4, longest=10_000).holds(exact), "too much of it would be padding"
    for name in ("rows", "last", "segments", "longest"):
        assert not replace(room, **{name: getattr(exact, name) - 1}).holds(exact)
        if name != "longest":
            assert not replace(room, **{name: getattr(exact, name)}).holds(exact)
    assert not replace(room, segments=exact.segments + 1, last=exact.last + room.longest + 1).holds(exact)


@pytest.mark.parametrize("share", ["none", "tree"])
def test_no_segment_of_a_room_is_longer_than_its_longest(
    make_engine: Callable[..., FastEngine],
    tiny: Path,
    contract: Contract,
    example: Callable[..., Example],
    share: Share,
) -> None:
    """What stands behind the longest that the flash kernels are told of they leave as it was in memory."""
    encoder = Encoder.of_folder(tiny, contract.encode)
    captions = (example(("user", 0, "COCO Yes:"), ("assistant", f"{i} red cars")) for i in range(90))
    encoded = [encoder.encode(caption) for caption in captions]
    draw, stations, tight = random.Random(0), list[Station](), 0
    decoder = make_engine().decoder
    for _ in range(40):
        batch = pack(draw.sample(encoded, draw.randint(1, 90)), 10, share=share)
        exact = Room.of(batch)
        if not any(station.room.holds(exact) for station in stations):
            stations.append(Station(exact.padded(), decoder))
        for station in stations:
            if station.room.holds(exact):
                station.fill(batch, 0)
                rows, room = station.rows, station.room
                for borders, end in (
                    (rows.borders.queries, room.rows),
                    (rows.borders.keys, room.keys or room.rows),
                    (rows.last_borders.queries, room.last),
                ):
                    lengths = borders.diff()
                    assert borders[0] == 0
                    assert borders[-1] == end
                    assert lengths.min() >= 0
                    assert lengths.max() <= room.longest
                padding = (room.keys or room.rows) - (exact.keys or exact.rows)
                tight += padding > room.longest
    assert share == "none" or tight, "one segment for all of the padding would have been too long in some"


@pytest.mark.parametrize("share", ["none", "tree"])
def test_one_room_is_around_batches_that_are_alike(
    tiny: Path, contract: Contract, example: Callable[..., Example], share: Share
) -> None:
    encoder = Encoder.of_folder(tiny, contract.encode)
    encoded = [encoder.encode(example(("user", 0, "Say:"), ("assistant", f"{i} " * (9 + i % 2)))) for i in range(99)]
    draw = random.Random(1)
    batches = [pack(draw.sample(encoded, 60), 10, share=share) for _ in range(20)]
    short = pack(encoded[:20], 10, share=share)
    room = Room.around([*batches, short])
    assert all(room.holds(Room.of(batch)) for batch in batches)
    assert not room.holds(Room.of(short)), "the end of an epoch would be padded to a whole step"


def test_padding_is_no_rows_copy(make_engine: Callable[..., FastEngine], packed: Callable) -> None:
    """One row with a copy for every padding key was added up for longer than attention took."""
    batch = packed("tree")
    room = Room.of(batch).padded()
    station = Station(room, make_engine().decoder)
    station.fill(batch, 0)
    copies = station.rows.key_copies
    assert copies is not None
    assert room.keys is not None
    assert room.keys > copies.starts[-1] == len(batch.key_rows)
    assert room.labels > station.rows.label_copies.starts[-1] == len(batch.targets)
    assert copies.starts.diff().max() == np.bincount(batch.key_rows).max()


def test_last_rows_begin_with_what_predicts(packed: Callable) -> None:
    batch = packed("none")
    rows, borders = _last_rows(batch)
    assert set(batch.label_rows) <= set(rows)
    assert borders[-1] == len(rows)
    for i, (start, end) in enumerate(zip(batch.starts[:-1], batch.starts[1:], strict=True)):
        labels = batch.label_rows[(batch.label_rows >= start) & (batch.label_rows < end)]
        np.testing.assert_array_equal(rows[borders[i] : borders[i + 1]], np.arange(labels.min(), end))


def test_a_segment_without_labels_has_no_last_rows(packed: Callable) -> None:
    """As where examples branch off before any answer; labels need not come in order."""
    batch = replace(
        packed("none"), tokens=np.zeros(10, np.int32), starts=np.array([0, 4, 7, 10], np.int32),
        label_rows=np.array([8, 2, 9, 8], np.int32),
    )  # fmt: skip
    rows, borders = _last_rows(batch)
    assert rows.tolist() == [2, 3, 8, 9]
    assert borders.tolist() == [0, 2, 2, 4]


@pytest.mark.parametrize("shared", [0, 1])
def test_a_padded_room_has_a_row_and_a_key_to_spare(packed: Callable, shared: int) -> None:
    for rows in range(3, 3000, 37):
        own = np.arange(rows, dtype=np.int32)
        batch = replace(
            packed("none"), tokens=own, starts=np.array([0, rows - 1, rows], np.int32), targets=own[:1],
            key_rows=np.concatenate([own[:-1], own[:shared], own[-1:]]), label_rows=own[[rows // 2]],
            key_starts=np.array([0, rows - 1, rows + shared], np.int32),
        )  # fmt: skip
        exact, room = Room.of(batch), Room.of(batch).padded()
        assert (room.keys is None) == (not shared)
        assert exact.rows < room.rows <= max(exact.rows * 1.07, exact.rows + 16)
        assert room.holds(replace(exact, segments=exact.segments + 1))


def test_keys_of_dropout_are_all_different() -> None:
    keys = {_drawn(seed, number) for seed in range(20) for number in range(100)}
    assert len(keys) == 2000
    assert all(0 <= key < 2**31 for key in keys)


@CUDA
def test_a_rehearsal_leaves_nothing_but_a_recording(make_engine: Callable[..., FastEngine], packed: Callable) -> None:
    batch = packed("none")
    engine, plain = (make_engine(0.3, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    before = engine.adapter.values.detach().clone()
    engine.rehearse([batch])
    assert engine.adapter.values.grad is not None
    assert not engine.adapter.values.grad.any()
    assert torch.equal(engine.adapter.values, before)
    (station,) = engine._stations.values()
    assert station.graph is not None
    found, wanted = passed(engine, batch, 5), passed(plain, batch, 5)
    assert next(iter(plain._stations.values())).graph is None
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])
    assert wanted[1].isfinite().all()
    assert wanted[1].any()
