"""Layers that are gathered from 2 and 3 ranks give the bits of whole ones, and each rank holds its part alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from lorgnette.config import TARGET_MODULES, TrainSettings
from lorgnette.distributed import World
from lorgnette.engine.base import run_on_main_rank
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import allocate_decoder, build_features, load_decoder
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features
from lorgnette.inference.generator import Generator
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import find_decoder_classes
from lorgnette.models.sharded_weight import ShardedLayers, ShardedWeight
from lorgnette.models.weight_loader import WeightRows
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.trainer import Trainer
from lorgnette.types import Encoded, Example, PackedBatch

CPU = torch.device("cpu")


class Model(NamedTuple):
    """What a rank needs to build an engine: read before the ranks are forked."""

    checkpoint: BaseCheckpoint
    shape: AdapterShape
    features: Features
    batch: PackedBatch

    def build_engine(
        self, shard_over: World | None, dtype: torch.dtype = torch.float32, *, connect: bool = False, **options: Any
    ) -> FastEngine:
        device = self.features.device
        adapter = FlatLoraParams(self.shape, device)
        adapter.copy_from(torch.randn(self.shape.num_params, generator=torch.Generator().manual_seed(0)) * 0.05)
        decoder = load_decoder(self.checkpoint, self.shape, device, dtype, shard_over=shard_over)
        if connect and decoder.shards is not None:
            decoder.shards.connect()
            assert not decoder.shards.is_collective
        return FastEngine(decoder, adapter, self.features, **{"dropout": 0.3, "recompute_layers": 2} | options)


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tiny_family: Callable[[str], Path]) -> BaseCheckpoint:
    """Four layers of a family."""
    return BaseCheckpoint.from_folder(tiny_family(request.param))


@pytest.fixture
def encoded(
    checkpoint: BaseCheckpoint, adapter_metadata: AdapterMetadata, conversations: list[Example]
) -> list[Encoded]:
    processor = Processor.from_folder(checkpoint.folder, adapter_metadata.processor)
    return [processor.encode(example) for example in conversations]


@pytest.fixture
def model(checkpoint: BaseCheckpoint, adapter_metadata: AdapterMetadata, encoded: list[Encoded]) -> Model:
    processor = Processor.from_folder(checkpoint.folder, adapter_metadata.processor)
    batch = pack(encoded[2:4], 10)  # one has an image
    features = build_features(checkpoint, processor.image_processor, CPU, torch.float32)
    assert not features.prepare(grid for example in encoded for grid in example.grids)
    return Model(checkpoint, AdapterShape(checkpoint.load_text_config(), TARGET_MODULES, 3, 2.0), features, batch)


ONE_FAMILY = pytest.mark.parametrize("checkpoint", ["qwen2_vl"], indirect=True)
BOTH_FAMILIES = pytest.mark.parametrize(
    ("checkpoint", "size"), [("qwen2_vl", 3), ("qwen3_vl", 2)], indirect=["checkpoint"]
)


def run_passes(engine: FastEngine, batch: PackedBatch) -> list[Tensor]:
    """Losses and gradients of two training passes and an evaluation, before and after other factors."""
    results = []
    for _ in range(2):
        engine.flat_grad.zero_()
        results += [engine.backward(batch), engine.backward(batch), engine.flat_grad.clone()]
        results.append(engine.compute_label_losses(batch))
        engine.adapter.values.data.mul_(1.5)
        engine.sync_weights()
    return results


def run_sharded(world: World, model: Model, expected: Sequence[Tensor]) -> tuple[list[bool], int, int]:
    engine = model.build_engine(world)
    weights = [linear.weight for linear in engine.decoder.linears]
    equal = [torch.equal(*pair) for pair in zip(run_passes(engine, model.batch), expected, strict=True)]
    assert all(isinstance(weight, ShardedWeight) for weight in weights)
    held = sum(weight.local.numel() for weight in weights if isinstance(weight, ShardedWeight))
    return equal, held, sum(weight.shape[0] * weight.shape[1] for weight in weights)


@BOTH_FAMILIES
def test_gathered_layers_equal_whole_ones(model: Model, size: int) -> None:
    """Dropout, recomputed layers and evaluation included, to the last bit; three ranks do not divide the rows.

    Qwen2.5-VL has the decoder of Qwen2-VL.
    """
    assert find_decoder_classes("qwen2_5_vl") == find_decoder_classes("qwen2_vl")
    expected = run_passes(model.build_engine(None), model.batch)
    assert not torch.equal(expected[2], expected[6])  # negative control: other factors, another gradient
    for equal, held, whole in run_ranks(run_sharded, size, model, expected):
        assert equal == [True] * 8
        assert whole / size <= held < whole / size * 1.05


class ReadableWorld(World):
    """Ranks in one process, one after the other, which wait for nobody."""

    def all_reduce(self, tensor: Tensor) -> None: ...


@ONE_FAMILY
def test_rows_are_copied_from_the_ranks_that_have_them(model: Model) -> None:
    """Where a rank can read the others' memory. Then it waits for none of them in a pass, and may run any number."""
    whole, *engines = (model.build_engine(world) for world in (None, *(ReadableWorld(rank, 2) for rank in range(2))))
    weights = [[[linear.weight for linear in layer.linears] for layer in e.decoder.layers] for e in engines]
    rows = [[[rank[i][k].local for rank in weights] for k in range(4)] for i in range(4)]
    for engine in engines:
        assert engine.shards is not None
        engine.shards.use_peer_rows(rows)
    stale = torch.empty(0)
    for _ in range(2):
        expected = [whole.backward(model.batch), whole.compute_label_losses(model.batch), whole.flat_grad]
        assert not torch.equal(stale, expected[1])
        for engine in engines:
            actual = [engine.backward(model.batch), engine.compute_label_losses(model.batch), engine.flat_grad]
            assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))
        for engine in (whole, *engines):
            engine.flat_grad.zero_()
            engine.adapter.values.data.mul_(1.5)
            engine.sync_weights()
            stale = engine.compute_label_losses(model.batch) if engine is engines[0] else stale  # the others' rows are


def run_on_gpus(world: World, model: Model, image_processor: ImageProcessor, dtype: torch.dtype) -> list[bool]:
    """Whether whole and sharded layers give the same bits. In bfloat16 the third pass and later ones replay a graph,
    but where all ranks gather together."""
    features = build_features(model.checkpoint, image_processor, torch.device("cuda"), dtype)
    assert not features.prepare(model.batch.grids)
    model = model._replace(features=features)
    whole = run_passes(model.build_engine(None, dtype), model.batch)
    equal = []
    for connect in (False, True, True, True):  # repeated: ranks must not read rows that another still writes
        sharded = run_passes(model.build_engine(world, dtype, connect=connect), model.batch)
        equal += [torch.equal(*pair) for pair in zip(whole, sharded, strict=True)]
    world.barrier()  # the other may still read the memory of this process
    return equal


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("checkpoint", ["qwen2_vl", "qwen3_vl"], indirect=True)
def test_layers_that_gpus_gather_equal_whole_ones(
    model: Model, adapter_metadata: AdapterMetadata, dtype: torch.dtype
) -> None:
    """Over NCCL, and copied from each other's memory."""
    processor = Processor.from_folder(model.checkpoint.folder, adapter_metadata.processor)
    for equal in run_ranks(run_on_gpus, 2, model, processor.image_processor, dtype, device_type="cuda"):
        assert equal == [True] * 32


class Recorder:
    """Callbacks that keep the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, step: int, loss: float) -> None:
        self.losses.append(loss)

    def on_evaluate(self, step: int, loss: float) -> float:
        self.losses.append(loss)
        return loss

    def on_log(self, report: Any) -> None: ...
    def on_new_best(self, step: int) -> None: ...
    def on_save(self, step: int, state: Any) -> None: ...
    def should_stop(self) -> bool:
        return False


SETTINGS = TrainSettings(epochs=1, batch_size=3, learning_rate=1e-2, max_tokens_per_microbatch=1)


def train(world: World, engine: FastEngine, examples: Sequence[Encoded]) -> tuple[list[float], bytes]:
    """Two steps, of three examples and of one, each in a pass of its own. One is held out."""
    recorder, sampler = Recorder(), BatchSampler(examples, SETTINGS, 0, group_by_image=False)
    assert Trainer(engine, sampler, examples[:1], SETTINGS, world=world).train(recorder)  # type: ignore[arg-type]
    return recorder.losses, engine.adapter.values.detach().numpy().tobytes()


def answer(engine: FastEngine, prompts: Sequence[Encoded]) -> list[bytes]:
    """The logits of two tokens: with the adapter, and with another one in its place for a while."""
    generator, trained, logits = Generator(engine.decoder, engine.features), engine.adapter.copy_to_cpu(), []
    for state in (trained, {name: factor * 2 for name, factor in trained.items()}, trained):
        engine.load_adapter(state)
        cache = generator.prefill(prompts, 2, use_adapter=True)
        first, token = cache.logits.clone(), torch.tensor([7] * len(prompts))
        logits += [first, generator.decode_step(cache, token, use_adapter=True).clone()]
    return [part.numpy().tobytes() for part in logits]


def train_and_answer(world: World, model: Model, examples: Sequence[Encoded]) -> tuple[Any, ...]:
    """Results of whole layers, and of sharded ones."""
    whole, sharded = model.build_engine(None), model.build_engine(world)
    results = [train(world, engine, examples) for engine in (whole, sharded)]
    sampler = BatchSampler(examples, SETTINGS, 0, group_by_image=False)
    num_passes = len(sampler.pack_step(0, 1, prefix_sharing=False, rank=world.rank, num_ranks=2))
    expected = answer(whole, examples[:2])
    answers = run_on_main_rank(world, sharded.shards, lambda: answer(sharded, examples[:2]))
    batch = pack(examples[:2], 10)
    losses = [engine.compute_loss(batch).item() for engine in (whole, sharded)]  # all ranks, after rank 0 alone
    return results, num_passes, answers == expected, len(set(expected)), losses


@ONE_FAMILY
def test_ranks_that_share_layers_train_and_answer(model: Model, encoded: list[Encoded]) -> None:
    """Also where they run unequally many passes, one has no example, or rank 0 alone answers."""
    ranks = run_ranks(train_and_answer, 2, model, encoded[:4])
    for (whole, sharded), _, _, _, losses in ranks:
        assert sharded == whole == ranks[0][0][0]
        assert losses[0] == losses[1]
    assert len(ranks[0][0][0][0]) == 2 + 2  # the losses of two steps, and two evaluations
    assert ranks[0][1] != ranks[1][1], "the ranks run unequally many passes"
    assert ranks[0][2], "answers"
    assert ranks[0][3] == 4, "the answers of another adapter differ"
    assert not ranks[1][2]


def count_gathers(world: World, model: Model) -> tuple[list[str], bool]:
    """What happens in a step, and whether gathers are discarded in vain."""
    engine, events = model.build_engine(world, recompute_layers=0), list[str]()
    shards = engine.shards
    assert isinstance(shards, ShardedLayers)
    begin, enter = shards._begin_gather, shards._enter_layer

    def record_begin(layer: int) -> None:
        if shards._gathered[layer % 2] != layer:
            events.append(f"gather {layer}")
        begin(layer)

    def record_enter(layer: int) -> None:
        if layer != shards._current:
            events.append(f"enter {layer}")
        enter(layer)

    shards._begin_gather, shards._enter_layer = record_begin, record_enter  # type: ignore[method-assign]
    engine.backward(model.batch)
    engine.backward(model.batch)
    of_passes = list(events)
    # Negative control: what was gathered is out of date once the factors change.
    engine.adapter.values.data.mul_(1.5)
    engine._weight_copy()
    stale = engine.compute_loss(model.batch)
    engine.sync_weights()
    return of_passes, bool(stale == engine.compute_loss(model.batch))


@ONE_FAMILY
def test_layers_are_gathered_one_ahead(model: Model) -> None:
    """The first alone is waited for. At each end of a pass the two layers that are there serve the next one."""
    first = ["enter 0", "gather 0", "gather 1", "enter 1", "gather 2", "enter 2", "gather 3", "enter 3"]
    down = ["enter 2", "gather 1", "enter 1", "gather 0", "enter 0"]
    up = ["enter 1", "gather 2", "enter 2", "gather 3", "enter 3"]
    for events, is_equal in run_ranks(count_gathers, 2, model):
        assert events[: len(first)] == first
        assert events == first + down + up + down
        assert not is_equal


@ONE_FAMILY
def test_out_of_memory_names_the_rank(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait in the middle of the pass, so that no rank can repeat it in smaller ones."""
    engine = model.build_engine(None)

    def fail(inputs: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine, "_run_eager", fail)
    with pytest.raises(torch.OutOfMemoryError):
        engine.backward(model.batch)
    engine.shards = ShardedLayers(World(1, 2, machine="b"), torch.empty)
    with pytest.raises(LorgnetteError, match=r"out of memory in a micro-batch of \d+ tokens, .*rank 1 on b"):
        engine.backward(model.batch)


@ONE_FAMILY
def test_ranks_read_each_row_once(model: Model) -> None:
    """Together all rows of every matrix; what is not cut, each reads whole."""
    _, whole = allocate_decoder(model.shape, CPU, torch.float32)
    for size in (2, 3, 5):
        shares = [allocate_decoder(model.shape, CPU, torch.float32, shard_over=World(r, size))[1] for r in range(size)]
        for name, tensor in whole.items():
            parts = [share[name] for share in shares]
            if name.endswith("_proj.weight"):
                ranges = [(part.start, part.start + len(part.rows)) for part in parts if isinstance(part, WeightRows)]
                rows = [row for start, end in ranges for row in range(start, end)]
                assert rows == list(range(len(tensor)))  # type: ignore[arg-type]
            else:
                assert [part.shape for part in parts] == [tensor.shape] * size
