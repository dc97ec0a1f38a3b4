"""Losses and every LoRA gradient of packed examples equal those of transformers' padded batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.processing.packing import pack, split_into_microbatches
from lorgnette.types import Encoded, Example, PackedBatch

TOLERANCE = 1e-5
PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))
LossesAndGrads = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module")
def pair(make_pair: Callable[..., Any]) -> Any:
    return make_pair(LoraSettings(rank=8, alpha=16, dropout=0.0), PROCESSOR)


@pytest.fixture(scope="module")
def encoded(pair: Any, conversations: list[Example]) -> list[Encoded]:
    return [pair.processor.encode(example) for example in conversations]


def measure_distance(actual: LossesAndGrads, expected: LossesAndGrads) -> float:
    """The largest difference of losses, and of gradients relative to the largest entry of their tensor."""
    assert actual[1].keys() == expected[1].keys()
    gradients = [
        ((actual[1][name] - grad).abs().max() / grad.abs().max().clamp_min(1e-12)).item()
        for name, grad in expected[1].items()
    ]
    return max((actual[0] - expected[0]).abs().max().item(), *gradients)


def count_labels(examples: Sequence[Encoded]) -> int:
    return sum(e.num_labels for e in examples)


def test_packed_equals_padded(pair: Any, encoded: list[Encoded]) -> None:
    packed = pair.compute_packed([pack(encoded, count_labels(encoded))])
    assert measure_distance(packed, pair.compute_padded(encoded)) < TOLERANCE


@pytest.mark.parametrize("parts", [("language", "merger"), ("language", "vision", "merger"), ("vision",)])
def test_trained_towers_equal_padded(make_pair: Callable[..., Any], conversations: list[Example], parts: Any) -> None:
    """A trained tower computes live features, and its gradients equal transformers' too."""
    pair = make_pair(LoraSettings(rank=4, dropout=0.0, parts=parts), PROCESSOR)
    examples = [pair.processor.encode(example) for example in conversations]
    packed = pair.compute_packed([pack(examples, count_labels(examples))])
    assert any("visual" in name for name in packed[1])
    assert measure_distance(packed, pair.compute_padded(examples)) < TOLERANCE


@pytest.mark.parametrize("max_tokens", [1, 120, 200])
def test_any_split_of_a_step_equals_the_step(pair: Any, encoded: list[Encoded], max_tokens: int) -> None:
    unsplit = pair.compute_packed([pack(encoded, count_labels(encoded))])
    split = split_into_microbatches(encoded, max_tokens)
    assert len(split) > 1
    assert measure_distance(pair.compute_packed(split), unsplit) < TOLERANCE


def test_cached_features_equal_live(pair: Any, encoded: list[Encoded]) -> None:
    batch = pack(encoded, count_labels(encoded))
    cached = pair.compute_packed([batch])
    live = Features(HfVisionTower(pair.model.get_base_model()), pair.processor.image_processor, is_live=True)
    live.prepare(batch.grids)
    torch.testing.assert_close(live.gather(batch.grids), pair.features.gather(batch.grids), atol=1e-5, rtol=0)
    pair.engine.features = live
    assert measure_distance(pair.compute_packed([batch]), cached) < TOLERANCE
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
    pair: Any, encoded: list[Encoded], break_batch: Callable[[PackedBatch], PackedBatch]
) -> None:
    """Negative controls: each possible mistake is far outside the tolerance."""
    batch = break_batch(pack(encoded, count_labels(encoded)))
    assert measure_distance(pair.compute_packed([batch]), pair.compute_padded(encoded)) > 1000 * TOLERANCE


def test_a_mean_per_micro_batch_is_not_the_mean_over_labels(pair: Any, encoded: list[Encoded]) -> None:
    """Negative control for the weights: averaging within micro-batches gives another step."""
    unsplit = pair.compute_packed([pack(encoded, count_labels(encoded))])
    averaged = [
        replace(b, label_weights=np.full_like(b.label_weights, 1 / len(b.label_weights) / 5))
        for b in split_into_microbatches(encoded, 1)
    ]
    assert measure_distance(pair.compute_packed(averaged), unsplit) > 1000 * TOLERANCE
