"""Padding is hidden. (That it changes no number: test_fast.py.)"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from lorgnette.config import TARGET_MODULES
from lorgnette.engine.batch_shapes import BatchShape
from lorgnette.engine.cuda_graphs import GraphStream, StaticInputs
from lorgnette.engine.loading import allocate_decoder
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.text_decoder import Decoder
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch

PackFn = Callable[[bool], PackedBatch]


@pytest.fixture(scope="module")
def pack_with(tiny: Path, adapter_metadata: AdapterMetadata, conversations: list[Example]) -> PackFn:
    processor = Processor.from_folder(tiny, adapter_metadata.processor)
    encoded = [processor.encode(example) for example in conversations]
    return lambda prefix_sharing: pack(encoded, 10, prefix_sharing=prefix_sharing)


@pytest.fixture(scope="module")
def decoder(tiny: Path) -> Decoder:
    text = BaseCheckpoint.from_folder(tiny).load_text_config()
    return allocate_decoder(AdapterShape(text, TARGET_MODULES, 4, 1.0), torch.device("cpu"), torch.float32)[0]


@pytest.mark.parametrize("prefix_sharing", [False, True])
def test_padding_is_hidden_from_every_query(pack_with: PackFn, decoder: Decoder, prefix_sharing: bool) -> None:
    batch = pack_with(prefix_sharing)
    exact, padded = BatchShape.from_batch(batch), BatchShape.from_batch(batch).pad()
    shape = BatchShape(padded.tokens + 256, padded.last_layer_tokens + 128, padded.labels)
    static = StaticInputs(shape, decoder)
    static.copy_from(batch)
    inputs, plan, last_plan = static.batch, static.batch.attention_plan, static.batch.last_attention_plan
    assert plan.query_indices.tolist() == list(range(shape.tokens))
    assert plan.visible_until[: exact.tokens].tolist() == batch.visible_until.tolist()
    assert not plan.visible_until[exact.tokens :].any()
    assert last_plan.query_indices[: exact.last_layer_tokens].tolist() == sorted(set(batch.label_indices.tolist()))
    assert (last_plan.query_indices[exact.last_layer_tokens :] == shape.tokens - 1).all()
    labels = inputs.label_indices[: exact.labels].long()
    assert last_plan.query_indices[labels].tolist() == batch.label_indices.tolist()
    # No tile or task has work for padding alone.
    queries = static.tiles.count_queries(static.heads_per_kv)
    for part, count in ((plan, exact.tokens), (last_plan, exact.last_layer_tokens)):
        padding_tiles = part.query_tiles[-(-count // queries) :, 2]
        assert len(padding_tiles)
        assert not padding_tiles.any()
        assert part.query_tiles[0, 2]
        assert part.dkv_tasks[:, 2].max() <= count


def test_padding_labels_belong_to_no_segment(pack_with: PackFn, decoder: Decoder) -> None:
    """One row that received every padding label took longer to add up than attention took."""
    batch = pack_with(True)
    static = StaticInputs(BatchShape.from_batch(batch).pad(), decoder)
    static.copy_from(batch)
    segments = static.batch.label_segments
    assert static.shape.labels > segments.offsets[-1] == len(batch.targets)
    assert segments.offsets.diff().max() == np.bincount(batch.label_indices).max()


def test_kernels_get_pointers_of_one_alignment(decoder: Decoder) -> None:
    """Triton compiles a kernel anew where one of its pointers is no multiple of 16 bytes: seconds within a step."""
    lengths = set()
    for tokens in (64, 128, 192, 4608, 4736, 4864):
        static = StaticInputs(BatchShape(tokens, tokens // 2, tokens // 2), decoder)
        for plan in (static.batch.attention_plan, static.batch.last_attention_plan):
            arrays = [plan.query_tiles.flatten(), plan.dkv_tasks.flatten(), plan.dkv_task_offsets, plan.query_indices]
            lengths |= {len(array) % 4 for array in arrays}
            assert all(array.data_ptr() % 16 == 0 for array in (*arrays, plan.visible_until))
        segments = static.batch.label_segments
        inputs = (segments.indices, segments.offsets, static.batch.targets, static.batch.label_weights)
        assert all(array.data_ptr() % 16 == 0 for array in (*inputs, static.dropout_keys))
    assert lengths > {0}, "side by side, these arrays have any alignment"


def test_no_garbage_is_collected_in_the_memory_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch ends the process where a graph's memory is freed meanwhile."""
    graph = MagicMock(spec=torch.cuda.CUDAGraph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    stream_class = torch.cuda.Stream
    for name in ("MemPool", "current_stream", "use_mem_pool", "stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: MagicMock(spec=stream_class))
    stream = GraphStream(torch.device("cpu"), lambda: None)
    for enter in (stream.capture, stream.eager):
        with enter():
            assert not gc.isenabled()
        assert gc.isenabled()


def test_workspaces_are_there_before_the_pool_is_used(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stream of the graphs: in the pool, a workspace would keep its memory from everyone. (On a GPU:
    test_fast.py, test_dropped_graphs_give_their_memory_back.)"""
    events: list[str] = []

    @contextmanager
    def enter(name: str) -> Iterator[None]:
        events.append(name)
        yield
        events.append(f"end {name}")

    def allocate() -> None:
        decoder.allocate_workspaces()
        events.append("workspaces")

    stream_class = torch.cuda.Stream
    for name in ("MemPool", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: MagicMock(spec=stream_class))
    graph = MagicMock(spec=torch.cuda.CUDAGraph, capture_begin=lambda *_: events.append("capture"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    stream = GraphStream(torch.device("cpu"), allocate)
    monkeypatch.setattr(torch.cuda, "use_mem_pool", lambda pool: enter("pool"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: enter("stream" if stream else "side stream"))
    stream.reserve(8)
    side = ["side stream", "end side stream"]
    assert events == ["stream", *side, "workspaces", "pool", "end pool", "end stream"]
    events.clear()
    with stream.capture():
        pass
    assert events == ["stream", *side, "workspaces", "capture", "end stream"]
