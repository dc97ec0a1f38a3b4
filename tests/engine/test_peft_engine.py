"""What the loop relies on. (That its numbers are transformers': parity/test_reference.py.)"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import Lora
from lorgnette.engine.peft_adapter import adapter_state, attach
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.features.image_features import Features, Tower
from lorgnette.lora.metadata import Contract
from lorgnette.models.qwen2_vl.family import FAMILIES
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Encoder
from lorgnette.types import Example, PackedBatch


@pytest.fixture(scope="module")
def batch(tiny: Path, contract: Contract, conversations: list[Example]) -> PackedBatch:
    encoder = Encoder.of_folder(tiny, contract.encode)
    return pack([encoder.encode(example) for example in conversations], 10)


@pytest.fixture
def engine_of(tiny: Path, contract: Contract, batch: PackedBatch) -> Callable[[Any], ReferenceEngine]:
    def engine(model: Any) -> ReferenceEngine:
        rule = Encoder.of_folder(tiny, contract.encode).rule
        features = Features(Tower(model.get_base_model()), rule, live=False)
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
    assert with_gradient == set(adapter_state(tuned))
    assert all(p.grad.any() for p in adapter_state(tuned).values())
    tuned.zero_grad()


def test_bfloat16_weights_keep_losses_and_gradients_in_float32(
    loaded: Callable[[], Any], engine_of: Any, batch: PackedBatch
) -> None:
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = attach(loaded().to(dtype), FAMILIES["qwen2_vl"], Lora(rank=4), seed=0)
        engine = engine_of(model)
        loss = engine.label_losses(batch)
        assert loss.dtype == torch.float32
        loss.mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter_state(model).values())
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], atol=0.1, rtol=0)
    assert not torch.equal(losses[1], losses[0])


def test_text_alone_needs_no_features(tiny: Path, contract: Contract, tuned: Any, conversations: list[Example]) -> None:
    encoder = Encoder.of_folder(tiny, contract.encode)
    features = Features(Tower(tuned.get_base_model()), encoder.rule, live=False)
    loss = ReferenceEngine(tuned.eval(), features).loss(pack([encoder.encode(conversations[2])], 1))
    assert torch.isfinite(loss)


def test_the_models_own_dropout_is_live_in_training_only(tuned: Any, engine_of: Any, batch: PackedBatch) -> None:
    engine = engine_of(tuned)
    assert torch.equal(engine.loss(batch), engine.loss(batch))
    assert not torch.equal(engine.backward(batch, 0), engine.backward(batch, 0))
    tuned.zero_grad()
    tuned.eval()
