"""Parity 2 and 3: losses, logits and every LoRA gradient of packed rows are those of transformers' padded batch."""

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
ENCODE = ProcessorSettings(image_size=None, image_tokens=(4, 30))
Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def bench(make_bench: Callable[..., Any]) -> Any:
    return make_bench(LoraSettings(rank=8, alpha=16, dropout=0.0), ENCODE)


@pytest.fixture(scope="module")
def encoded(bench: Any, conversations: list[Example]) -> list[Encoded]:
    return [bench.encoder.encode(example) for example in conversations]


def distance(one: tuple[Tensor, Gradients], other: tuple[Tensor, Gradients]) -> float:
    """The largest difference of a loss, or of a gradient relative to its tensor's largest entry."""
    assert one[1].keys() == other[1].keys()
    gradients = [
        ((one[1][name] - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()
        for name, theirs in other[1].items()
    ]
    return max((one[0] - other[0]).abs().max().item(), *gradients)


def labels_of(examples: Sequence[Encoded]) -> int:
    return sum(e.num_labels for e in examples)


def test_packed_equals_padded(bench: Any, encoded: list[Encoded]) -> None:
    ours = bench.packed([pack(encoded, labels_of(encoded))])
    assert distance(ours, bench.padded(encoded)) < TOLERANCE


@pytest.mark.parametrize("towers", [("language", "merger"), ("language", "vision", "merger"), ("vision",)])
def test_open_towers_equal_padded(make_bench: Callable[..., Any], conversations: list[Example], towers: Any) -> None:
    """With the tower trained its features are live, and its own gradients are transformers' too."""
    bench = make_bench(LoraSettings(rank=4, dropout=0.0, parts=towers), ENCODE)
    examples = [bench.encoder.encode(example) for example in conversations]
    ours = bench.packed([pack(examples, labels_of(examples))])
    assert any("visual" in name for name in ours[1])
    assert distance(ours, bench.padded(examples)) < TOLERANCE


@pytest.mark.parametrize("most_tokens", [1, 120, 200])
def test_any_split_of_a_step_is_the_step(bench: Any, encoded: list[Encoded], most_tokens: int) -> None:
    whole = bench.packed([pack(encoded, labels_of(encoded))])
    split = split_into_microbatches(encoded, most_tokens)
    assert len(split) > 1
    assert distance(bench.packed(split), whole) < TOLERANCE


def test_cached_features_equal_live(bench: Any, encoded: list[Encoded]) -> None:
    batch = pack(encoded, labels_of(encoded))
    kept = bench.packed([batch])
    live = Features(HfVisionTower(bench.model.get_base_model()), bench.encoder.rule, is_live=True)
    live.prepare(batch.grids)
    torch.testing.assert_close(live.gather(batch.grids), bench.features.of(batch.grids), atol=1e-5, rtol=0)
    bench.engine.features = live
    assert distance(bench.packed([batch]), kept) < TOLERANCE
    bench.engine.features = bench.features


def broken_ends(batch: PackedBatch) -> PackedBatch:
    """The second example sees the first."""
    return replace(batch, ends=np.maximum(batch.visible_until, np.unique(batch.visible_until)[1]))


def broken_positions(batch: PackedBatch) -> PackedBatch:
    """Positions run on over the row instead of starting anew in each example."""
    return replace(batch, positions=batch.position_ids + np.arange(len(batch.input_ids), dtype=np.int32) // 50)


def broken_features(batch: PackedBatch) -> PackedBatch:
    """The first picture's features stand in the place of every picture's."""
    return replace(batch, feature_rows=np.zeros_like(batch.feature_indices))


def broken_labels(batch: PackedBatch) -> PackedBatch:
    """Each label is predicted from its own row."""
    return replace(batch, label_rows=np.minimum(batch.label_indices + 1, len(batch.input_ids) - 1).astype(np.int32))


@pytest.mark.parametrize("broken", [broken_ends, broken_positions, broken_features, broken_labels])
def test_the_comparison_can_fail(
    bench: Any, encoded: list[Encoded], broken: Callable[[PackedBatch], PackedBatch]
) -> None:
    """Negative controls: each mistake that packing can make is far outside the tolerance."""
    batch = broken(pack(encoded, labels_of(encoded)))
    assert distance(bench.packed([batch]), bench.padded(encoded)) > 1000 * TOLERANCE


def test_mean_of_passes_is_not_the_mean_over_labels(bench: Any, encoded: list[Encoded]) -> None:
    """Negative control for the weights: averaging each pass by itself is another step."""
    whole = bench.packed([pack(encoded, labels_of(encoded))])
    apart = [
        replace(b, weights=np.full_like(b.label_weights, 1 / len(b.label_weights) / 5))
        for b in split_into_microbatches(encoded, 1)
    ]
    assert distance(bench.packed(apart), whole) > 1000 * TOLERANCE
