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

from lorgnette.engine import loading
from lorgnette.engine.fast import BatchShape, FastEngine, StaticInputs, _derive_dropout_key
from lorgnette.kernels.attention_plan import count_tile_queries
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.packing import Share, pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example, PackedBatch

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def encoded(tiny: Path, contract: AdapterMetadata, conversations: list[Example]) -> list[Encoded]:
    encoder = Processor.from_folder(tiny, contract.processor)
    return [encoder.encode(example) for example in conversations]


@pytest.fixture(scope="module")
def packed(encoded: list[Encoded]) -> Callable[[Share], PackedBatch]:
    return lambda share: pack(encoded, 10, prefix_sharing=share)


@pytest.fixture(scope="module")
def make_engine(tiny: Path, saved: Path, contract: AdapterMetadata) -> Callable[..., FastEngine]:
    """make_engine(0.3[, seed=, grouped=, device=, dtype=]) → with the saved adapter and so much dropout."""
    checkpoint, rule = BaseCheckpoint.from_folder(tiny), Processor.from_folder(tiny, contract.processor).image_processor

    def make(dropout: float = 0.0, *, device: str = "cpu", dtype: Any = torch.float32, **named: Any) -> FastEngine:
        features = loading.build_features(checkpoint, rule, torch.device(device), dtype)
        model = loading.load_fast_model(checkpoint, SavedAdapter.load(saved), features, dtype)
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
    exact, room = BatchShape.from_batch(batch), BatchShape.from_batch(batch).pad()
    station, entered = StaticInputs(room, engine.decoder), engine._load_batch(batch)
    station.copy_from(batch, _derive_dropout_key(0, 0))
    station.x[: exact.tokens] = entered.x
    station.x[exact.tokens :].normal_()  # as an earlier, longer batch left it
    grad = engine.adapter.values.grad
    assert grad is not None
    grad.zero_()
    engine._forward_backward(station)
    assert station.loss.item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)
    assert wanted.any()
    station.batch.label_weights[len(batch.targets) - 9 :] = (
        1.0  # padding that weighs, and labels that weigh otherwise, are
    )
    grad.zero_()  # seen: the comparison can fail
    engine._forward_backward(station)
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
    assert engine.compute_loss(batch).item() == pytest.approx(plain, rel=1e-6)
    before = engine.adapter.values.grad
    assert before is not None
    engine.backward(batch, 5)
    twice = before.clone()
    engine.backward(batch, 5)
    torch.testing.assert_close(before - twice, gradient, rtol=1e-4, atol=1e-5)  # gradients are added up


def test_rows_are_shared_where_masks_are(make_engine: Callable[..., FastEngine]) -> None:
    assert make_engine().prefix_sharing == "tree"
    assert make_engine(0.3).prefix_sharing == "none"
    assert make_engine(0.3, grouped=True).prefix_sharing == "tree"
    assert make_engine(0.3).eval_prefix_sharing == "tree"


@pytest.mark.parametrize("share", ["none", "tree"])
def test_a_room_holds_what_it_was_made_for(packed: Callable, share: Share) -> None:
    batch = packed(share)
    exact, room = BatchShape.from_batch(batch), BatchShape.from_batch(batch).pad()
    assert exact.tokens == len(batch.tokens) < room.tokens
    assert room.fits(exact)
    assert not exact.fits(exact), "no row for padding to be"
    assert not replace(room, rows=room.tokens * 4).fits(exact), "too much of it would be padding"
    for name in ("rows", "last", "labels"):
        assert not replace(room, **{name: getattr(exact, name) - 1}).fits(exact)


@pytest.mark.parametrize("share", ["none", "tree"])
def test_padding_sees_nothing_and_is_not_seen(
    make_engine: Callable[..., FastEngine], packed: Callable, share: Share
) -> None:
    batch = packed(share)
    exact, room = BatchShape.from_batch(batch), BatchShape.from_batch(batch).pad()
    room = BatchShape(room.tokens + 256, room.last_layer_tokens + 128, room.labels)
    station = StaticInputs(room, make_engine().decoder)
    station.copy_from(batch, 0)
    rows = station.batch
    assert rows.attention_plan.query_indices.tolist() == list(range(station.shape.tokens))
    assert rows.attention_plan.visible_until[: exact.tokens].tolist() == batch.ends.tolist()
    assert not rows.attention_plan.visible_until[exact.tokens :].any()
    assert rows.last_attention_plan.query_indices[: exact.last_layer_tokens].tolist() == sorted(
        set(batch.label_rows.tolist())
    )
    assert (rows.last_attention_plan.query_indices[exact.last_layer_tokens :] == station.shape.tokens - 1).all()
    assert (
        rows.last_attention_plan.query_indices[rows.label_indices[: exact.labels].long()].tolist()
        == batch.label_rows.tolist()
    )
    queries = count_tile_queries(station._heads_per_kv)
    for sight, count in (
        (rows.attention_plan, exact.tokens),
        (rows.last_attention_plan, exact.last_layer_tokens),
    ):  # nobody works for padding alone
        alone = sight.query_tiles[-(-count // queries) :, 2]
        assert len(alone)
        assert not alone.any()
        assert sight.query_tiles[0, 2]
        assert sight.dkv_tasks[:, 2].max() <= count


@pytest.mark.parametrize("share", ["none", "tree"])
def test_one_room_is_around_batches_that_are_alike(
    tiny: Path, contract: AdapterMetadata, example: Callable[..., Example], share: Share
) -> None:
    encoder = Processor.from_folder(tiny, contract.processor)
    encoded = [encoder.encode(example(("user", 0, "Say:"), ("assistant", f"{i} " * (9 + i % 2)))) for i in range(99)]
    draw = random.Random(1)
    batches = [pack(draw.sample(encoded, 60), 10, prefix_sharing=share) for _ in range(20)]
    short = pack(encoded[:20], 10, prefix_sharing=share)
    room = BatchShape.covering([*batches, short])
    assert all(room.fits(BatchShape.from_batch(batch)) for batch in batches)
    assert not room.fits(BatchShape.from_batch(short)), "the end of an epoch would be padded to a whole step"


def test_padding_is_no_rows_copy(make_engine: Callable[..., FastEngine], packed: Callable) -> None:
    """One row with a copy for every label of padding was added up for longer than attention took."""
    batch = packed("tree")
    station = StaticInputs(BatchShape.from_batch(batch).pad(), make_engine().decoder)
    station.copy_from(batch, 0)
    copies = station.batch.label_segments
    assert station.shape.labels > copies.offsets[-1] == len(batch.targets)
    assert copies.offsets.diff().max() == np.bincount(batch.label_rows).max()


def test_a_padded_room_has_a_row_to_spare() -> None:
    for rows in range(3, 3000, 37):
        exact = BatchShape(rows, rows // 3 + 1, rows // 2)
        room = exact.pad()
        assert exact.tokens < room.tokens <= max(exact.tokens * 1.07, exact.tokens + 16)
        assert room.fits(exact)
        most = BatchShape(rows, rows, rows).pad()
        assert most.fits(BatchShape(rows, rows, rows))
        assert most.last_layer_tokens < most.tokens, "rows that are no query are told by there being fewer queries"


def test_keys_of_dropout_are_all_different() -> None:
    keys = {_derive_dropout_key(seed, number) for seed in range(20) for number in range(100)}
    assert len(keys) == 2000
    assert all(0 <= key < 2**31 for key in keys)


@CUDA
def test_a_rehearsal_leaves_nothing_but_a_recording(make_engine: Callable[..., FastEngine], packed: Callable) -> None:
    batch = packed("none")
    engine, plain, other = (make_engine(0.3, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    other.warmup([batch])
    before = engine.adapter.values.detach().clone()
    engine.capture_ahead([batch])
    assert engine.adapter.values.grad is not None
    assert not engine.adapter.values.grad.any()
    assert torch.equal(engine.adapter.values, before)
    (station,) = engine._static_inputs.values()
    assert station.graph is not None
    found, wanted = passed(engine, batch, 5), passed(plain, batch, 5)
    assert next(iter(plain._static_inputs.values())).graph is None
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])
    assert wanted[1].isfinite().all()
    assert wanted[1].any()


@CUDA
@pytest.mark.parametrize("where", ["losses_and_gradient", "_attention_backward"])
@pytest.mark.parametrize("when", ["rehearsed", "run", "recorded"])
def test_after_a_pass_that_memory_does_not_hold_smaller_ones_are_recorded(
    make_engine: Callable[..., FastEngine], packed: Callable, when: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was recorded before, and whether it ran out while the pass ran or while it was recorded."""
    batch = packed("none")
    engine, plain = (make_engine(0.3, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    wanted = passed(plain, batch, 5)
    if when != "rehearsed":
        for _ in range(2 if when == "recorded" else 1):
            passed(engine, packed("tree"), 5)
    if when == "recorded":
        passed(engine, batch, 5)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(engine.decoder, where, full)
        if when == "rehearsed":
            engine.capture_ahead([batch])
        else:
            with pytest.raises(torch.OutOfMemoryError):
                passed(engine, batch, 5)
    assert not engine._static_inputs
    for _ in range(3):  # as it comes, while it is recorded, played back
        loss, gradient = passed(engine, batch, 5)
        assert loss == wanted[0]
        assert torch.equal(gradient, wanted[1])
    assert next(iter(engine._static_inputs.values())).graph is not None
