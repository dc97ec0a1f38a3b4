"""Layers that are gathered from 2 and 3 ranks give the bits of whole ones, and each rank holds its part alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from lorgnette.config import TARGET_MODULES
from lorgnette.distributed import World
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import build_features, load_decoder
from lorgnette.features.image_features import Features
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.sharded_weight import ShardedWeight
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch

CPU = torch.device("cpu")


class Model(NamedTuple):
    """What a rank needs to build an engine: read before the ranks are forked."""

    checkpoint: BaseCheckpoint
    shape: AdapterShape
    features: Features
    batch: PackedBatch

    def build_engine(self, shard_over: World | None, **options: Any) -> FastEngine:
        adapter = FlatLoraParams(self.shape, CPU)
        adapter.copy_from(torch.randn(self.shape.num_params, generator=torch.Generator().manual_seed(0)) * 0.05)
        decoder = load_decoder(self.checkpoint, self.shape, CPU, torch.float32, shard_over=shard_over)
        return FastEngine(decoder, adapter, self.features, **{"dropout": 0.3, "recompute_layers": 2} | options)


@pytest.fixture
def model(
    request: pytest.FixtureRequest,
    tiny_family: Callable[[str], Path],
    adapter_metadata: AdapterMetadata,
    conversations: list[Example],
) -> Model:
    """Four layers of a family, with images."""
    checkpoint = BaseCheckpoint.from_folder(tiny_family(request.param))
    processor = Processor.from_folder(checkpoint.folder, adapter_metadata.processor)
    batch = pack([processor.encode(example) for example in conversations], 10)
    features = build_features(checkpoint, processor.image_processor, CPU, torch.float32)
    assert not features.prepare(batch.grids)
    return Model(checkpoint, AdapterShape(checkpoint.load_text_config(), TARGET_MODULES, 3, 2.0), features, batch)


ONE_FAMILY = pytest.mark.parametrize("model", ["qwen2_vl"], indirect=True)
ALL_FAMILIES = pytest.mark.parametrize(
    ("model", "size"), [("qwen2_vl", 3), ("qwen2_5_vl", 2), ("qwen3_vl", 2)], indirect=["model"]
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


@ALL_FAMILIES
def test_gathered_layers_equal_whole_ones(model: Model, size: int) -> None:
    """Dropout, recomputed layers and evaluation included, to the last bit; three ranks do not divide the rows."""
    expected = run_passes(model.build_engine(None), model.batch)
    assert not torch.equal(expected[2], expected[6])  # negative control: other factors, another gradient
    for equal, held, whole in run_ranks(run_sharded, size, model, expected):
        assert equal == [True] * 8
        assert whole / size <= held < whole / size * 1.05
