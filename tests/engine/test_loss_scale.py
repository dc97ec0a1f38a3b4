"""Engines multiply gradients by the loss scale, which float16 needs: without it small gradients become zero."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.engine import loading, peft_engine
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loss_scale import INITIAL_LOSS_SCALE, allocate_loss_scale
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch

CPU = torch.device("cpu")
LORA = LoraSettings(rank=4, alpha=8, dropout=0.0)
BuildEngine = Callable[[torch.dtype], Any]


@pytest.fixture(scope="module")
def processor(tiny: Path, adapter_metadata: AdapterMetadata) -> Processor:
    return Processor.from_folder(tiny, adapter_metadata.processor)


@pytest.fixture(scope="module")
def batch(processor: Processor, conversations: list[Example]) -> PackedBatch:
    return pack([processor.encode(example) for example in conversations], 10)


@pytest.fixture(scope="module", params=["fast", "reference"])
def build_engine(request: pytest.FixtureRequest, tiny: Path, processor: Processor, batch: PackedBatch) -> BuildEngine:
    """build_engine(dtype) → with the same random adapter in each dtype, on the CPU."""
    checkpoint = BaseCheckpoint.from_folder(tiny)
    shape = AdapterShape(checkpoint.load_text_config(), TARGET_MODULES, LORA.rank, LORA.alpha / LORA.rank)
    values = torch.randn(shape.num_params, generator=torch.Generator().manual_seed(0)) * 0.05

    def build(dtype: torch.dtype) -> Any:
        if request.param == "fast":
            features = loading.build_features(checkpoint, processor.image_processor, CPU, dtype)
            adapter = FlatLoraParams(shape, CPU)
            adapter.copy_from(values)
            engine: Any = FastEngine(
                loading.load_decoder(checkpoint, shape, CPU, dtype), adapter, features, dropout=0.0
            )
        else:
            base = peft_engine.load_base_model(checkpoint, CPU, dtype)
            features = Features(HfVisionTower(base), processor.image_processor, is_live=False)
            model = peft_engine.add_adapter(base, checkpoint.family, LORA, seed=0)
            adapter = FlatLoraParams(shape, CPU)
            adapter.copy_from(values)
            peft_engine.set_adapter_state(model, adapter.copy_to_cpu())
            engine = peft_engine.ReferenceEngine(model, features)
        features.prepare(batch.grids)
        return engine

    return build


def compute(engine: Any, batch: PackedBatch) -> tuple[float, Tensor]:
    """(loss, the gradient as it is, which is then cleared)."""
    loss = engine.backward(batch).item()
    gradient = torch.cat([parameter.grad.flatten() for parameter in engine.parameters])
    for parameter in engine.parameters:
        parameter.grad.zero_()
    return loss, gradient


def test_only_float16_is_scaled() -> None:
    assert allocate_loss_scale(torch.float16, CPU) == INITIAL_LOSS_SCALE == 65536
    assert allocate_loss_scale(torch.bfloat16, CPU) is allocate_loss_scale(torch.float32, CPU) is None


def test_the_gradient_is_multiplied_and_the_loss_is_not(build_engine: BuildEngine, batch: PackedBatch) -> None:
    """By a power of two, so every bit is the same. The scale is read at each step."""
    engine = build_engine(torch.float32)
    assert engine.loss_scale is None
    loss, gradient = compute(engine, batch)
    engine.loss_scale = torch.tensor(1024.0)
    scaled_loss, scaled = compute(engine, batch)
    assert scaled_loss == loss
    assert torch.equal(scaled, 1024 * gradient)
    engine.loss_scale.mul_(0.5)
    assert torch.equal(compute(engine, batch)[1], 512 * gradient)
    assert gradient.any()


def test_in_float16_the_scale_keeps_small_gradients(
    build_engine: BuildEngine, batch: PackedBatch, processor: Processor, conversations: list[Example]
) -> None:
    """Those of a step with very many labels, each of little weight."""
    many = pack([processor.encode(example) for example in conversations], 300_000)
    loss, exact = compute(build_engine(torch.float32), many)
    engine = build_engine(torch.float16)
    assert engine.loss_scale == INITIAL_LOSS_SCALE
    half_loss, scaled = compute(engine, many)
    assert half_loss == pytest.approx(loss, rel=2e-3)
    assert measure_distance(scaled / INITIAL_LOSS_SCALE, exact) < 0.02
    engine.loss_scale.fill_(1)  # negative control
    assert measure_distance(compute(engine, many)[1], exact) > 0.1


def measure_distance(gradient: Tensor, exact: Tensor) -> float:
    """Of the norms: |gradient − exact| / |exact|."""
    return ((gradient - exact).norm() / exact.norm()).item()
