"""Losses and every LoRA gradient of packed examples equal those of transformers' padded batch, in every family."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from plain import measure_distance
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.packing import pack, split_into_microbatches
from lorgnette.types import Encoded, Example, PackedBatch

TOLERANCE = 1e-5
PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))
FIRST = next(name for name, family in FAMILIES.items() if family.can_pack)
LossesAndGrads = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(make_pair: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    return make_pair(LoraSettings(rank=8, alpha=16, dropout=0.0), PROCESSOR, model_type=request.param)


@pytest.fixture(scope="module")
def encoded(pair: Any, conversations: list[Example]) -> list[Encoded]:
    return [pair.processor.encode(example) for example in conversations]


@pytest.fixture(scope="module")
def batch(encoded: list[Encoded]) -> PackedBatch:
    return pack(encoded, count_labels(encoded))


@pytest.fixture(scope="module")
def expected(pair: Any, encoded: list[Encoded]) -> LossesAndGrads:
    return pair.compute_padded(encoded)  # type: ignore[no-any-return]


def count_labels(examples: Sequence[Encoded]) -> int:
    return sum(e.num_labels for e in examples)


def measure_losses(pair: Any, batch: PackedBatch, expected: LossesAndGrads) -> float:
    """The largest difference of a loss."""
    pair.features.prepare(batch.grids)
    with torch.no_grad():
        return (pair.engine.compute_label_losses(batch) - expected[0]).abs().max().item()  # type: ignore[no-any-return]


def test_packed_equals_padded(pair: Any, batch: PackedBatch, expected: LossesAndGrads) -> None:
    assert measure_distance(pair.compute_packed([batch]), expected) < TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_towers_equal_padded(make_pair: Callable[..., Any], conversations: list[Example], name: str) -> None:
    """A trained tower computes live features; its gradients, deepstack's mergers' too, equal transformers'."""
    parts = ("language", "vision", "merger")
    pair = make_pair(LoraSettings(rank=4, dropout=0.0, parts=parts), PROCESSOR, model_type=name)
    examples = [pair.processor.encode(example) for example in conversations]
    packed = pair.compute_packed([pack(examples, count_labels(examples))])
    assert any("visual.blocks" in name for name in packed[1])
    assert any("visual.merger" in name for name in packed[1])
    assert any("deepstack" in name for name in packed[1]) == bool(pair.family.deepstack_linears)
    assert measure_distance(packed, pair.compute_padded(examples)) < TOLERANCE


@pytest.mark.parametrize("parts", [("language", "merger"), ("vision",)])
def test_one_part_of_a_tower_equals_padded(
    make_pair: Callable[..., Any], conversations: list[Example], parts: Any
) -> None:
    pair = make_pair(LoraSettings(rank=4, dropout=0.0, parts=parts), PROCESSOR)
    examples = [pair.processor.encode(example) for example in conversations]
    packed = pair.compute_packed([pack(examples, count_labels(examples))])
    assert any("visual" in name for name in packed[1])
    assert measure_distance(packed, pair.compute_padded(examples)) < TOLERANCE


def test_any_split_of_a_step_equals_the_step(pair: Any, encoded: list[Encoded], expected: LossesAndGrads) -> None:
    split = split_into_microbatches(encoded, 120)
    assert 1 < len(split) < len(encoded)
    assert measure_distance(pair.compute_packed(split), expected) < TOLERANCE


def test_kept_features_equal_live(pair: Any, batch: PackedBatch, expected: LossesAndGrads) -> None:
    live = Features(HfVisionTower(pair.model.get_base_model()), pair.processor.image_processor, is_live=True)
    live.prepare(batch.grids)
    pair.features.prepare(batch.grids)
    torch.testing.assert_close(live.gather(batch.grids), pair.features.gather(batch.grids), atol=1e-5, rtol=0)
    pair.engine.features = live
    assert measure_losses(pair, batch, expected) < TOLERANCE
    pair.engine.features = pair.features


def break_mask(batch: PackedBatch) -> PackedBatch:
    """The second example sees the first."""
    return replace(batch, visible_until=np.maximum(batch.visible_until, np.unique(batch.visible_until)[1]))


def break_positions(batch: PackedBatch) -> PackedBatch:
    """Positions continue over the packed examples instead of starting at 0 in each."""
    return replace(batch, position_ids=batch.position_ids + np.arange(len(batch.input_ids), dtype=np.int32) // 50)


def break_features(batch: PackedBatch) -> PackedBatch:
    """Every image gets the features of the first."""
    return replace(batch, feature_indices=np.zeros_like(batch.feature_indices))


def break_labels(batch: PackedBatch) -> PackedBatch:
    """Each label is predicted from its own token."""
    return replace(batch, label_indices=np.minimum(batch.label_indices + 1, len(batch.input_ids) - 1).astype(np.int32))


@pytest.mark.parametrize("break_batch", [break_mask, break_positions, break_features, break_labels])
def test_a_mistake_in_packing_shows(
    pair: Any, batch: PackedBatch, expected: LossesAndGrads, break_batch: Callable[[PackedBatch], PackedBatch]
) -> None:
    """Negative controls: each possible mistake is far outside the tolerance."""
    assert measure_losses(pair, break_batch(batch), expected) > 1000 * TOLERANCE


def test_examples_with_a_recurrence_cannot_be_packed(pair: Any, batch: PackedBatch, expected: LossesAndGrads) -> None:
    """In one row they give other losses: the fact `can_pack` is needed, and true elsewhere."""
    pair.engine._can_pack = True
    difference = measure_losses(pair, batch, expected)
    pair.engine._can_pack = pair.family.can_pack
    assert difference < TOLERANCE if pair.family.can_pack else difference > 5000 * TOLERANCE


def test_deepstack_matters(pair: Any, batch: PackedBatch, expected: LossesAndGrads) -> None:
    """Negative control: without the features' further levels, or with two exchanged, the losses differ."""
    pair.features.prepare(batch.grids)
    features, C = pair.features.gather(batch.grids), pair.engine._embedding.embedding_dim
    assert (features.shape[1] > C) == bool(pair.family.deepstack_linears)
    if features.shape[1] > C:
        first, *levels = features.split(C, 1)
        for wrong in (first, torch.cat([first, *reversed(levels)], 1)):
            pair.engine.features = type("Wrong", (), {"gather": lambda self, grids, wrong=wrong: wrong})()
            with torch.no_grad():
                losses = pair.engine.compute_label_losses(batch)
            pair.engine.features = pair.features
            assert (losses - expected[0]).abs().max() > 1000 * TOLERANCE


@pytest.mark.parametrize("pair", [FIRST], indirect=True)
def test_a_mean_per_micro_batch_is_not_the_mean_over_labels(
    pair: Any, encoded: list[Encoded], expected: LossesAndGrads
) -> None:
    """Negative control for the weights: averaging within micro-batches gives another step."""
    averaged = [
        replace(b, label_weights=np.full_like(b.label_weights, 1 / len(b.label_weights) / 5))
        for b in split_into_microbatches(encoded, 1)
    ]
    assert measure_distance(pair.compute_packed(averaged), expected) > 1000 * TOLERANCE


def rms_error(values: Tensor, reference: Tensor) -> float:
    return (values.float() - reference).square().mean().sqrt().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FAMILIES)
def test_on_a_gpu(make_pair: Callable[..., Any], conversations: list[Example], name: str) -> None:
    """In fp32 it equals transformers; in bf16 it is as close to fp32 as transformers' bf16."""
    lora, device = LoraSettings(rank=8, alpha=16, dropout=0.0), torch.device("cuda")
    fp32, bf16 = (make_pair(lora, PROCESSOR, device, d, model_type=name) for d in (torch.float32, torch.bfloat16))
    encoded = [fp32.processor.encode(example) for example in conversations]
    batch, expected = pack(encoded, count_labels(encoded)), fp32.compute_padded(encoded)
    assert measure_distance(fp32.compute_packed([batch]), expected) < 5 * TOLERANCE
    with torch.autocast("cuda", torch.bfloat16):
        theirs = bf16.compute_padded(encoded)
    ours = bf16.compute_packed([batch])
    assert rms_error(ours[0], expected[0]) <= 1.2 * rms_error(theirs[0], expected[0])
    our_error, their_error = (sum(rms_error(x[1][n], g) for n, g in expected[1].items()) for x in (ours, theirs))
    assert our_error <= 1.5 * their_error  # rounding sends some tokens to other experts, here and there
