"""Planned shapes are the cheapest, and a batch's shape depends on the plan and its own size alone."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from lorgnette.engine.batch_shapes import BatchShape, ShapePlan, count_capture_tokens, plan_shapes
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.registry import FAMILIES, parse_configs
from lorgnette.planning.limits import MAX_GRAPHS_AHEAD, pad_tokens
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example


@pytest.mark.parametrize("prefix_sharing", [False, True])
def test_a_shape_covers_the_batch_it_was_padded_for(
    tiny: Path, adapter_metadata: AdapterMetadata, conversations: list[Example], prefix_sharing: bool
) -> None:
    processor = Processor.from_folder(tiny, adapter_metadata.processor)
    batch = pack([processor.encode(example) for example in conversations], 10, prefix_sharing=prefix_sharing)
    exact, padded = BatchShape.from_batch(batch), BatchShape.from_batch(batch).pad()
    assert exact.tokens == len(batch.input_ids) < padded.tokens
    assert padded.covers(exact)
    assert not exact.covers(exact), "no token is left for padding"
    for name in ("tokens", "last_layer_tokens", "labels"):
        assert not replace(padded, **{name: getattr(exact, name) - 1}).covers(exact)


def test_a_padded_shape_has_a_spare_token() -> None:
    for tokens in range(3, 3000, 37):
        exact = BatchShape(tokens, tokens // 3 + 1, tokens // 2)
        padded = exact.pad()
        assert exact.tokens < padded.tokens <= max(exact.tokens * 1.07, exact.tokens + 16)
        assert padded.covers(exact)
        full = BatchShape(tokens, tokens, tokens)
        assert full.pad().covers(full)
        assert full.pad().last_layer_tokens < full.pad().tokens, "fewer queries than tokens mark the last layer"


def compute_cost(shapes: list[BatchShape], planned: Sequence[BatchShape], capture_tokens: int, repeats: float) -> float:
    """Padding beside what `pad_tokens` adds to every size, and captures."""
    padding = sum(
        min(plan.tokens for plan in planned if plan.covers(shape)) - pad_tokens(shape.tokens) for shape in shapes
    )
    return repeats * padding + capture_tokens * len(planned)


@pytest.mark.parametrize("seed", range(4))
def test_planned_shapes_cost_least(seed: int) -> None:
    """Of all choices of at most three sizes."""
    rng = random.Random(seed)
    shapes = [BatchShape(tokens := rng.randrange(200, 4000), tokens // 3, tokens // 3) for _ in range(12)]
    sizes = sorted({pad_tokens(shape.tokens) for shape in shapes})
    for capture_tokens, repeats in ((500, 1.0), (3000, 1.0), (3000, 20.0), (10**6, 1.0)):
        planned = plan_shapes(shapes, capture_tokens, repeats, most=3).shapes
        choices = [
            [BatchShape(tokens, tokens, tokens) for tokens in (*some, sizes[-1])]
            for count in range(3) for some in combinations(sizes[:-1], count)
        ]  # fmt: skip
        costs = [compute_cost(shapes, choice, capture_tokens, repeats) for choice in choices]
        assert compute_cost(shapes, planned, capture_tokens, repeats) == min(costs) < max(costs)
        assert [shape.tokens for shape in planned] == sorted({shape.tokens for shape in planned}, reverse=True)
        assert [shape.labels for shape in planned] == sorted((shape.labels for shape in planned), reverse=True)


def test_graphs_are_as_many_as_they_are_worth() -> None:
    fixed = [BatchShape(2100 + i % 8, 220, 220) for i in range(62)]
    assert len(plan_shapes(fixed, 5000).shapes) == 1
    rng = random.Random(0)
    mixed = [BatchShape(rng.randrange(1700, 3200), 900, 900) for _ in range(48)]
    counts = [len(plan_shapes(mixed, 5000, repeats).shapes) for repeats in (0.1, 1.0, 100.0)]
    assert counts[0] == 1 < counts[1] < counts[2] == MAX_GRAPHS_AHEAD
    last_step = [*fixed, BatchShape(900, 100, 100)]
    assert len(plan_shapes(last_step, 5000).shapes) == 1, "padding a short last step costs less than its graph"
    assert len(plan_shapes(last_step, 5000, repeats=10).shapes) == 2
    assert plan_shapes([], 5000) == ShapePlan()


def test_a_batch_takes_the_smallest_planned_shape_that_covers_it() -> None:
    large, middle, small = (BatchShape(tokens, tokens // 2, tokens // 2) for tokens in (4096, 3072, 2048))
    plan = ShapePlan((large, middle, small), least_tokens=1500)
    assert plan.select(BatchShape(2047, 100, 100)) == small
    assert plan.select(BatchShape(2048, 100, 100)) == middle, "one token must be left"
    assert plan.select(BatchShape(2000, 1200, 1100)) == middle, "for the room for labels"
    assert plan.select(BatchShape(1500, 100, 100)) == small
    assert plan.select(BatchShape(1100, 100, 100)) == small, "less than half of it is padding"
    for exact in (BatchShape(1000, 100, 100), BatchShape(4096, 100, 100), BatchShape(3000, 2500, 2500)):
        assert plan.select(exact) == exact.pad(), "too small, too large, too many labels"
    once = ShapePlan((large,), least_tokens=1000)
    assert once.select(BatchShape(1000, 100, 100)) == large, "it was planned so"


def test_unplanned_sizes_have_few_shapes() -> None:
    assert len({BatchShape(tokens, 512, 512).pad() for tokens in range(2048, 4095)}) == 16


def test_a_graph_is_worth_fewer_tokens_of_a_larger_model() -> None:
    sizes = {size.names[0]: size.config for family in FAMILIES.values() for size in family.sizes}
    tokens = [count_capture_tokens(parse_configs(sizes[f"Qwen/Qwen2-VL-{name}-Instruct"])[0]) for name in ("2B", "7B")]
    assert 3000 < tokens[0] < 8000
    assert tokens[1] < tokens[0] / 3
