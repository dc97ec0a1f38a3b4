"""What the loop relies on. (That its numbers are transformers': parity/test_reference.py.)"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LoraSettings
from lorgnette.engine.peft_adapter import add_adapter, get_adapter_state
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.qwen2_vl.family import FAMILIES
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch


@pytest.fixture(scope="module")
def batch(tiny: Path, contract: AdapterMetadata, conversations: list[Example]) -> PackedBatch:
    encoder = Processor.from_folder(tiny, contract.processor)
    return pack([encoder.encode(example) for example in conversations], 10)


@pytest.fixture
def engine_of(tiny: Path, contract: AdapterMetadata, batch: PackedBatch) -> Callable[[Any], ReferenceEngine]:
    def engine(model: Any) -> ReferenceEngine:
        rule = Processor.from_folder(tiny, contract.processor).image_processor
        features = Features(HfVisionTower(model.get_base_model()), rule, is_live=False)
        assert not features.prepare(batch.grids)
        return ReferenceEngine(model.eval(), features)

    return engine


def test_the_loss_is_the_weighted_sum(tuned: Any, engine_of: Any, batch: PackedBatch) -> None:
    engine = engine_of(tuned)
    with torch.no_grad():
        losses = engine.label_losses(batch)
        assert losses.shape == (len(batch.targets),)
        weights = torch.rand(len(losses))
        loss = engine.loss(replace(batch, weights=weights.numpy()))
    torch.testing.assert_close(loss, (losses * weights).sum())


def test_gradients_land_in_the_adapter_and_nowhere_else(tuned: Any, engine_of: Any, batch: PackedBatch) -> None:
    engine_of(tuned).backward(batch, 0)
    with_gradient = {name.replace(".default.", ".") for name, p in tuned.named_parameters() if p.grad is not None}
    assert with_gradient == set(get_adapter_state(tuned))
    assert all(p.grad.any() for p in get_adapter_state(tuned).values())
    tuned.zero_grad()


def test_bfloat16_weights_keep_losses_and_gradients_in_float32(
    loaded: Callable[[], Any], engine_of: Any, batch: PackedBatch
) -> None:
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = add_adapter(loaded().to(dtype), FAMILIES["qwen2_vl"], LoraSettings(rank=4), seed=0)
        engine = engine_of(model)
        loss = engine.label_losses(batch)
        assert loss.dtype == torch.float32
        loss.mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in get_adapter_state(model).values())
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], atol=0.1, rtol=0)
    assert not torch.equal(losses[1], losses[0])


def test_text_alone_needs_no_features(
    tiny: Path, contract: AdapterMetadata, tuned: Any, conversations: list[Example]
) -> None:
    encoder = Processor.from_folder(tiny, contract.processor)
    features = Features(HfVisionTower(tuned.get_base_model()), encoder.image_processor, is_live=False)
    loss = ReferenceEngine(tuned.eval(), features).compute_loss(pack([encoder.encode(conversations[2])], 1))
    assert torch.isfinite(loss)


def test_the_models_own_dropout_is_live_in_training_only(tuned: Any, engine_of: Any, batch: PackedBatch) -> None:
    engine = engine_of(tuned)
    assert torch.equal(engine.loss(batch), engine.loss(batch))
    assert not torch.equal(engine.backward(batch, 0), engine.backward(batch, 0))
    tuned.zero_grad()
    tuned.eval()
