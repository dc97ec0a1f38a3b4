"""Padding and splitting change no number, dropout follows its keys, and graphs survive running out of memory.

(Equality with transformers' numbers: parity/test_fast.py.)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.config import TARGET_MODULES
from lorgnette.device import release_workspaces
from lorgnette.engine import fast, loading
from lorgnette.engine.batch_shapes import BatchShape
from lorgnette.engine.cuda_graphs import StaticInputs
from lorgnette.engine.fast import FastEngine
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl import text_decoder
from lorgnette.processing.dropout_keys import derive_step_key
from lorgnette.processing.packing import pack, split_into_microbatches
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example, PackedBatch

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PackFn = Callable[..., PackedBatch]
WITH_DEEPSTACK = pytest.mark.parametrize("folder", ["qwen3_vl"], indirect=True)
WITH_AND_WITHOUT_DEEPSTACK = pytest.mark.parametrize("folder", [None, "qwen3_vl"], indirect=True)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tiny: Path, tiny_family: Callable[[str], Path]) -> Path:
    """The tiny Qwen2-VL, or the family that a test names."""
    return tiny_family(request.param) if getattr(request, "param", None) else tiny


@pytest.fixture(scope="module")
def encoded(folder: Path, adapter_metadata: AdapterMetadata, conversations: list[Example]) -> list[Encoded]:
    processor = Processor.from_folder(folder, adapter_metadata.processor)
    return [processor.encode(example) for example in conversations]


@pytest.fixture(scope="module")
def pack_with(encoded: list[Encoded]) -> PackFn:
    """pack_with(True[, step_key=]): all conversations, with prefix sharing."""
    return lambda prefix_sharing, step_key=0: pack(encoded, 10, prefix_sharing=prefix_sharing, step_key=step_key)


@pytest.fixture(scope="module")
def make_engine(folder: Path, adapter_metadata: AdapterMetadata) -> Callable[..., FastEngine]:
    """make_engine(0.3[, group_by_image=, device=, dtype=]) → with a random adapter and this dropout."""
    checkpoint = BaseCheckpoint.from_folder(folder)
    image_processor = Processor.from_folder(folder, adapter_metadata.processor).image_processor
    shape = AdapterShape(checkpoint.load_text_config(), TARGET_MODULES, 4, 2.0)
    values = torch.randn(shape.num_params, generator=torch.Generator().manual_seed(0)) * 0.05

    def make(dropout: float = 0.0, *, device: str = "cpu", dtype: Any = torch.float32, **options: Any) -> FastEngine:
        features = loading.build_features(checkpoint, image_processor, torch.device(device), dtype)
        adapter = FlatLoraParams(shape, features.device)
        adapter.copy_from(values)
        decoder = loading.load_decoder(checkpoint, shape, features.device, dtype)
        return FastEngine(decoder, adapter, features, dropout=dropout, **options)

    return make


def compute(engine: FastEngine, *batches: PackedBatch) -> tuple[float, Tensor]:
    """Loss and gradient of micro-batches."""
    grad = engine.adapter.values.grad
    assert grad is not None
    grad.zero_()
    loss = 0.0
    for batch in batches:
        engine.features.prepare(batch.grids)
        loss += engine.backward(batch).item()
    return loss, grad.clone()


@WITH_AND_WITHOUT_DEEPSTACK
@pytest.mark.parametrize(("prefix_sharing", "dropout", "times"), [(False, 0.0, 1), (True, 0.3, 1), (False, 0.3, 3)])
def test_padding_changes_neither_loss_nor_gradient(
    make_engine: Callable[..., FastEngine], pack_with: PackFn, prefix_sharing: bool, dropout: float, times: int
) -> None:
    """Neither a few tokens nor, in a shape that is planned for larger batches, twice as many as the batch has."""
    engine, batch = make_engine(dropout), pack_with(prefix_sharing)
    loss, expected = compute(engine, batch)
    exact = BatchShape.from_batch(batch)
    shape = BatchShape(times * exact.tokens, times * exact.last_layer_tokens, times * exact.labels).pad()
    padded, unpadded = StaticInputs(shape, engine.decoder), engine._load_batch(batch)
    padded.copy_from(batch)
    padded.x[: exact.tokens] = unpadded.x
    padded.batch.level_embeds[:, : exact.tokens] = unpadded.batch.level_embeds
    padded.x[exact.tokens :].normal_()  # as an earlier, longer batch left it
    grad = engine.adapter.values.grad
    assert grad is not None
    grad.zero_()
    engine._forward_backward(padded)
    assert padded.loss.item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
    assert expected.any()
    # Negative control: padding labels with a weight change the loss and the gradient.
    padded.batch.label_weights[len(batch.targets) - 9 :] = 1.0
    grad.zero_()
    engine._forward_backward(padded)
    assert padded.loss.item() != pytest.approx(loss, rel=1e-2)
    assert (grad - expected).abs().max() > 1e-4


@WITH_DEEPSTACK
def test_a_batch_without_images_has_nothing_of_the_last_ones(
    make_engine: Callable[..., FastEngine], pack_with: PackFn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may use the same static inputs."""
    engine, batch, none = make_engine(), pack_with(False), np.zeros(0, np.int32)
    text = replace(batch, grids=(), image_token_indices=none, feature_indices=none)
    loss, expected = compute(engine, text)
    assert compute(engine, batch)[0] != pytest.approx(loss, rel=1e-3)  # negative control
    monkeypatch.setattr(engine, "_use_padding", True)
    first, second = engine._load_batch(batch), engine._load_batch(text)
    assert first is second
    other = engine._allocate_inputs(BatchShape(64, 16, 16)).batch.level_embeds
    assert other.data_ptr() == first.batch.level_embeds.data_ptr()  # the shapes share their memory
    assert other.shape[1] == 64
    assert engine.adapter.values.grad is not None
    engine.adapter.values.grad.zero_()
    engine._forward_backward(second)
    assert second.loss.item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(engine.adapter.values.grad, expected, rtol=1e-4, atol=1e-6)


def test_seed_and_step_select_the_dropout_masks(make_engine: Callable[..., FastEngine], pack_with: PackFn) -> None:
    batch, engine = pack_with(False, derive_step_key(0, 5)), make_engine(0.3)
    loss, gradient = compute(engine, batch)
    same_loss, same_gradient = compute(make_engine(0.3), pack_with(False, derive_step_key(0, 5)))
    assert same_loss == loss
    assert torch.equal(same_gradient, gradient)
    without_dropout = compute(make_engine(), batch)[0]
    for seed, step in ((0, 6), (1, 5)):
        assert compute(engine, pack_with(False, derive_step_key(seed, step)))[0] not in (loss, without_dropout)
    assert engine.compute_loss(batch).item() == pytest.approx(without_dropout, rel=1e-6)


@pytest.mark.parametrize("prefix_sharing", [False, True])
def test_splitting_a_step_changes_neither_loss_nor_gradient(
    make_engine: Callable[..., FastEngine], encoded: list[Encoded], prefix_sharing: bool
) -> None:
    """Dropout included: however many micro-batches or processes compute a step, an example has the same masks."""
    engine = make_engine(0.3)

    def split(max_tokens: int, **options: Any) -> list[PackedBatch]:
        return split_into_microbatches(encoded, max_tokens, prefix_sharing=prefix_sharing, **options)

    loss, expected = compute(engine, *split(10_000))
    by_process = [batch for places in ([4, 2], [0, 1, 3]) for batch in split(100, places=places)]
    for batches in (split(100), split(1), by_process):
        assert len(batches) > 2
        same_loss, gradient = compute(engine, *batches)
        assert same_loss == pytest.approx(loss, rel=1e-6)
        assert (gradient - expected).abs().max() < 1e-6 * expected.abs().max()
    # Negative control: other masks, as if every micro-batch were a step of its own.
    labels = sum(example.num_labels for example in encoded)
    alone = [pack([example], labels, prefix_sharing=prefix_sharing) for example in encoded]
    assert (compute(engine, *alone)[1] - expected).abs().max() > 1e-2 * expected.abs().max()


def test_gradients_add_up(make_engine: Callable[..., FastEngine], pack_with: PackFn) -> None:
    batch, engine = pack_with(False), make_engine(0.3)
    gradient = compute(engine, batch)[1]
    engine.backward(batch)
    torch.testing.assert_close(engine.adapter.values.grad, 2 * gradient, rtol=1e-4, atol=1e-5)


def test_prefixes_are_shared_if_their_dropout_masks_are(make_engine: Callable[..., FastEngine]) -> None:
    assert make_engine().prefix_sharing
    assert not make_engine(0.3).prefix_sharing
    assert make_engine(0.3, group_by_image=True).prefix_sharing
    assert make_engine(0.3).eval_prefix_sharing


def record_captures(engine: FastEngine, monkeypatch: pytest.MonkeyPatch) -> list[BatchShape]:
    """Let the engine capture as on a GPU, without computing. Returns the shapes, which grow."""
    captured = list[BatchShape]()
    monkeypatch.setattr(engine, "_use_padding", True)
    monkeypatch.setattr(engine, "_graph_stream", SimpleNamespace(reserve=lambda size: None))
    monkeypatch.setattr(engine, "_use_graphs", True)
    monkeypatch.setattr(engine, "_open_graph_stream", lambda: engine._graph_stream)

    @contextmanager
    def capture() -> Iterator[torch.cuda.CUDAGraph]:
        yield MagicMock(spec=torch.cuda.CUDAGraph)

    monkeypatch.setattr(engine._graph_stream, "capture", capture, raising=False)
    monkeypatch.setattr(engine, "_forward_backward", lambda inputs: captured.append(inputs.shape))
    return captured


def test_graphs_are_captured_ahead_for_all_sizes(
    make_engine: Callable[..., FastEngine], encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the largest; every batch then has its graph, also one that would be padded much."""
    engine = make_engine()
    batches = [pack(encoded[:1] * n, 10) for n in (2, 12, 11, 2, 12)]
    engine.features.prepare(batches[0].grids)
    captured = record_captures(engine, monkeypatch)
    for repeats, count in ((1.0, 1), (1e9, 3)):
        captured.clear()
        engine.drop_graphs()
        engine.capture_ahead(batches, repeats=repeats)
        assert len(captured) == count
        assert captured[0].covers(BatchShape.from_batch(batches[1]))
        assert [shape.tokens for shape in captured] == sorted((shape.tokens for shape in captured), reverse=True)
        for batch in batches:
            inputs = engine._load_batch(batch)
            assert inputs.graph is not None
            assert inputs.shape in captured
    assert set(engine._static_inputs) == set(captured), "no batch needed another shape"


@pytest.mark.parametrize(("most", "count"), [(3, 3), (2, 1), (1, 1), (0, 0)])
def test_where_memory_is_short_for_all_graphs_one_is_captured(
    most: int,
    count: int,
    make_engine: Callable[..., FastEngine],
    encoded: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """most: graphs for which there is memory. The one covers all batches."""
    engine = make_engine()
    batches = [pack(encoded[:1] * n, 10) for n in (2, 12, 11)]
    engine.features.prepare(batches[0].grids)
    record_captures(engine, monkeypatch)

    def compute(inputs: StaticInputs) -> None:
        if sum(each.graph is not None for each in engine._static_inputs.values()) == most:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(engine, "_forward_backward", compute)
    engine.capture_ahead(batches, repeats=1e9)
    assert [inputs.graph is not None for inputs in engine._static_inputs.values()] == [True] * count
    if count == 1:
        (shape,) = engine._static_inputs
        assert all(shape.covers(BatchShape.from_batch(batch)) for batch in batches)


def test_the_shapes_that_were_used_last_are_kept(
    make_engine: Callable[..., FastEngine], encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes that come once, as those of evaluations, do not push out the graphs of all steps."""
    monkeypatch.setattr(fast, "MAX_GRAPHS", 2)
    engine = make_engine()
    engine._use_padding = True  # as on CUDA; nothing is computed here
    batches = [pack(encoded[:1] * count, 10) for count in (1, 8, 16, 32)]
    engine.features.prepare(batches[0].grids)
    often, *others = batches
    kept = engine._load_batch(often)
    for batch in others:
        inputs = engine._load_batch(batch)
        assert engine._load_batch(often) is kept
        assert engine._static_inputs == {kept.shape: kept, inputs.shape: inputs}


@CUDA
@WITH_AND_WITHOUT_DEEPSTACK
def test_capturing_ahead_changes_nothing_but_the_graph(
    make_engine: Callable[..., FastEngine], pack_with: PackFn
) -> None:
    batch = pack_with(False)
    engine, eager, warmed_up = (make_engine(0.3, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    warmed_up.warmup([batch])
    before = engine.adapter.values.detach().clone()
    engine.capture_ahead([batch])
    assert engine.adapter.values.grad is not None
    assert not engine.adapter.values.grad.any()
    assert torch.equal(engine.adapter.values, before)
    (inputs,) = engine._static_inputs.values()
    assert inputs.graph is not None
    replayed, expected = compute(engine, batch), compute(eager, batch)
    assert next(iter(eager._static_inputs.values())).graph is None
    assert replayed[0] == expected[0]
    assert torch.equal(replayed[1], expected[1])
    assert expected[1].isfinite().all()
    assert expected[1].any()


@CUDA
def test_an_eval_loss_takes_the_graphs_memory_and_changes_no_step(
    make_engine: Callable[..., FastEngine], pack_with: PackFn
) -> None:
    batch, other = pack_with(False), pack_with(True)
    engine, eager = (make_engine(0.3, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    engine.warmup([batch])
    engine.drop_graphs()
    eager.features.prepare(other.grids)
    expected, losses = compute(engine, batch), eager.compute_label_losses(other)
    compute(engine, batch)
    engine.drop_graphs()
    engine.capture_ahead([batch], pool_bytes := 64 * 2**20)
    compute(engine, batch)
    pool = engine._graph_stream._pool.id
    before = [segment["total_size"] for segment in torch.cuda.memory_snapshot(pool)]
    assert pool_bytes in before, "one piece"
    assert sum(before) < 2 * pool_bytes
    kept = engine.compute_label_losses(other)
    for _ in range(2):
        replayed = compute(engine, batch)
        assert replayed[0] == expected[0]
        assert torch.equal(replayed[1], expected[1])
    assert torch.equal(kept, losses), "a replay does not write over them"
    assert [segment["total_size"] for segment in torch.cuda.memory_snapshot(pool)] == before


@CUDA
@pytest.mark.parametrize("is_ahead", [True, False])
def test_dropped_graphs_give_their_memory_back(
    make_engine: Callable[..., FastEngine], pack_with: PackFn, is_ahead: bool
) -> None:
    """All of it: cuBLAS keeps its workspaces, but they do not lie in it. As in training, none are there at first."""
    batch, engine = pack_with(False), make_engine(0.3, device="cuda", dtype=torch.bfloat16)
    engine.warmup([batch])
    engine.drop_graphs()
    release_workspaces()
    if is_ahead:
        engine.capture_ahead([batch], pool_bytes=64 * 2**20)
    expected = [compute(engine, batch) for _ in range(2)][-1]
    pool = engine._graph_stream._pool.id
    reserved, before = torch.cuda.memory_reserved(), list_segments(pool)
    engine.drop_graphs()
    assert sum(before) >= (64 * 2**20 if is_ahead else 1)
    assert list_segments(pool) == []
    assert torch.cuda.memory_reserved() <= reserved - sum(before)
    again = compute(engine, batch)
    assert again[0] == expected[0]
    assert torch.equal(again[1], expected[1])


def list_segments(pool: tuple[int, int]) -> list[int]:
    """Bytes of all that a pool has from the device."""
    return [
        part["total_size"] for part in torch.cuda.memory_snapshot() if tuple(part["segment_pool_id"]) == tuple(pool)
    ]


@CUDA
@pytest.mark.parametrize("function", ["compute_losses_and_grad", "attention_backward"])
@pytest.mark.parametrize("when", ["captured ahead", "eager", "captured"])
def test_smaller_batches_are_captured_after_running_out_of_memory(
    make_engine: Callable[..., FastEngine],
    pack_with: PackFn,
    when: str,
    function: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever was captured before, and whether memory runs out in an eager run or in a capture."""
    batch = pack_with(False)
    engine, eager = (make_engine(0.3, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    expected = compute(eager, batch)
    if when != "captured ahead":
        for _ in range(2 if when == "captured" else 1):
            compute(engine, pack_with(True))
    if when == "captured":
        compute(engine, batch)

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(text_decoder if function == "attention_backward" else engine.decoder, function, fail)
        if when == "captured ahead":
            engine.capture_ahead([batch])
        else:
            with pytest.raises(torch.OutOfMemoryError):
                compute(engine, batch)
    assert not engine._static_inputs
    for _ in range(3):  # eager, captured, replayed
        loss, gradient = compute(engine, batch)
        assert loss == expected[0]
        assert torch.equal(gradient, expected[1])
    assert next(iter(engine._static_inputs.values())).graph is not None
