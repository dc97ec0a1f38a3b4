"""Mean average precision, compared with pycocotools."""

import contextlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from lorgnette.metrics import average_precision
from lorgnette.metrics.average_precision import (
    MAX_BOXES,
    Matches,
    compute_alone,
    match_boxes,
    tally_average_precision,
)
from lorgnette.metrics.bootstrap import compare_tallies, compute_intervals
from lorgnette.metrics.score import Tally

Boxes = list[tuple[str, float, tuple[float, float, float, float]]]
"""(label, score, (left, top, right, bottom)) of each box of an example."""


@dataclass(frozen=True)
class Example:
    """answers and references of one image; the scores of references do not count."""

    answers: Boxes
    references: Boxes


def match(examples: Sequence[Example]) -> list[Matches]:
    labels = sorted({label for example in examples for label, *_ in example.references})

    def select(boxes: Boxes, label: str) -> tuple[np.ndarray, np.ndarray]:
        own = [(score, edges) for name, score, edges in boxes if name == label]
        return np.array([edges for _, edges in own], float).reshape(-1, 4), np.array([score for score, _ in own], float)

    return [
        {label: match_boxes(*select(e.answers, label), select(e.references, label)[0]) for label in labels}
        for e in examples
    ]


def score_by_pycocotools(examples: Sequence[Example]) -> tuple[float, float, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = sorted({label for e in examples for label, *_ in [*e.answers, *e.references]})

    def annotate(number: int, image: int, label: str, score: float, edges: tuple[float, ...]) -> dict:
        left, top, right, bottom = edges
        box = [left, top, right - left, bottom - top]
        return {
            "id": number, "image_id": image, "category_id": labels.index(label) + 1, "bbox": box,
            "area": box[2] * box[3], "iscrowd": 0, "score": score,
        }  # fmt: skip

    references = [(i, *box) for i, e in enumerate(examples, 1) for box in e.references]
    answers = [(i, *box) for i, e in enumerate(examples, 1) for box in e.answers]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        for coco, rows in ((truth, references), (found, answers)):
            coco.dataset = {
                "images": [{"id": i} for i in range(1, len(examples) + 1)],
                "categories": [{"id": i, "name": label} for i, label in enumerate(labels, 1)],
                "annotations": [annotate(number, *row) for number, row in enumerate(rows, 1)],
            }
            coco.createIndex()
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return tuple(judge.stats[:3])


def score_here(examples: Sequence[Example]) -> tuple[float, ...]:
    matches = match(examples)
    values = [each.value for each in tally_average_precision(matches)]
    return tuple(-1.0 if value is None else value for value in values)


def draw_examples(seed: int, num_images: int, num_labels: int, num_scores: int | None = None) -> list[Example]:
    """Random images: most answers are references that moved a little. num_scores: distinct ones, so that there are
    ties."""
    rng = np.random.default_rng(seed)

    def draw_score() -> float:
        return float(rng.random()) if num_scores is None else float(rng.integers(num_scores) / num_scores)

    examples = []
    for _ in range(num_images):
        references, answers = [], []
        for _ in range(rng.integers(0, 6)):
            left, top = rng.integers(0, 80, 2)
            width, height = rng.integers(1, 40, 2)
            edges = (float(left), float(top), float(left + width), float(top + height))
            label = f"label {rng.integers(num_labels)}"
            references.append((label, 0.0, edges))
            for _ in range(rng.integers(0, 3)):
                moved = np.array(edges) + rng.integers(-4, 5, 4)
                moved = (*np.minimum(moved[:2], moved[2:]), *np.maximum(moved[:2], moved[2:]))
                answered = label if rng.random() < 0.9 else f"label {rng.integers(num_labels + 1)}"
                answers.append((answered, draw_score(), tuple(map(float, moved))))
        rng.shuffle(answers)
        examples.append(Example([(label, float(score), tuple(edges)) for label, score, edges in answers], references))
    return examples


def box(left: float, size: float = 10, label: str = "a", score: float = 1.0) -> tuple:
    return (label, score, (left, 0.0, left + size, size))


HAND_MADE = {
    "all right": [Example([box(0), box(20)], [box(0), box(20)])],
    "no answers": [Example([], [box(0)]), Example([], [box(5)])],
    "no answers to one image": [Example([], [box(0)]), Example([box(5)], [box(5)])],
    "no references": [Example([box(0)], [])],
    "no references of one image": [Example([box(0, score=0.9)], []), Example([box(0, score=0.8)], [box(0)])],
    "two answers to one reference": [Example([box(1, score=0.2), box(0, score=0.2)], [box(0)])],
    "one answer to two references": [Example([box(0)], [box(0), box(0)])],
    "two references overlap alike": [Example([box(1), box(0)], [box(0), box(2)])],
    "wrong label": [Example([box(0, label="b")], [box(0), box(0, label="b")]), Example([box(0)], [box(0, label="b")])],
    "a label of no reference": [Example([box(0), box(0, label="c", score=2)], [box(0)])],
    "some labels are missing": [Example([box(0, label=""), box(20)], [box(0), box(20, label="")])],
    "an IoU of exactly one half": [Example([("a", 1.0, (0.0, 0.0, 10.0, 5.0))], [box(0)])],
    "boxes without area": [Example([box(0, 0), box(5)], [box(0, 0), box(5)])],
    "ties between images": [Example([box(50), box(0)], [box(0)]), Example([box(0), box(50)], [box(0)])],
    "more boxes than count": [Example([box(200 + i) for i in range(100)] + [box(0)], [box(0)])],
    "a high score among many": [Example([box(200 + i) for i in range(150)] + [box(0, score=2)], [box(0)])],
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_cases_have_the_official_value(name: str) -> None:
    assert score_here(HAND_MADE[name]) == pytest.approx(score_by_pycocotools(HAND_MADE[name]), abs=1e-12)


@pytest.mark.parametrize(
    ("num_images", "num_labels", "num_scores"), [(1, 1, None), (25, 1, 1), (25, 3, 4), (30, 6, None)]
)
def test_random_cases_have_the_official_value(num_images: int, num_labels: int, num_scores: int | None) -> None:
    for seed in range(2):
        examples = draw_examples(seed, num_images, num_labels, num_scores)
        assert score_here(examples) == pytest.approx(score_by_pycocotools(examples), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "value", "case"),
    [
        ("MAX_BOXES", 99, "more boxes than count"),
        ("IOU_THRESHOLDS", np.linspace(0.51, 0.95, 10), "an IoU of exactly one half"),
        ("RECALL_POINTS", np.linspace(0, 1, 11), "random"),
    ],
)
def test_another_definition_has_another_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, case: str
) -> None:
    examples = HAND_MADE.get(case) or draw_examples(0, 25, 3, 4)
    examples = (
        examples
        if case != "more boxes than count"
        else [Example([box(200 + i) for i in range(99)] + [box(0)], [box(0)])]
    )
    expected = score_by_pycocotools(examples)
    assert score_here(examples) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(average_precision, name, value)
    assert score_here(examples) != pytest.approx(expected, abs=1e-4)


def tally(examples: Sequence[Example]) -> Tally:
    return tally_average_precision(match(examples))[0]


def test_an_example_that_is_drawn_twice_counts_twice() -> None:
    examples = draw_examples(1, 12, 2)
    weights = np.random.default_rng(0).integers(0, 3, (5, 12)).astype(float)
    whole = tally(examples)
    values = whole.compute_value(whole.sum_counts(weights))
    for row, value in zip(weights, values, strict=True):
        drawn = [example for example, count in zip(examples, row, strict=True) for _ in range(int(count))]
        assert value == pytest.approx(score_by_pycocotools(drawn)[0], abs=1e-12)


def test_two_systems_can_be_mixed() -> None:
    first, second = draw_examples(2, 10, 2, 3), draw_examples(2, 10, 2, 3)
    second = [Example([(label, 1 - score, edges) for label, score, edges in e.answers], e.references) for e in second]
    a, b = tally(first).align(tally(second))
    assert (a.value, b.value) == (pytest.approx(tally(first).value), pytest.approx(tally(second).value))
    from_first = np.arange(10) % 2
    sums = a.sum_counts(from_first[None].astype(float)) + b.sum_counts(1.0 - from_first[None])
    mixed = [x if is_first else y for x, y, is_first in zip(first, second, from_first, strict=True)]
    assert a.compute_value(sums)[0] == pytest.approx(score_by_pycocotools(mixed)[0], abs=1e-12)


def test_intervals_and_differences() -> None:
    good = draw_examples(3, 40, 2)
    bad = [
        Example([(label, score, (*edges[:2], 200.0, 200.0)) for label, score, edges in e.answers], e.references)
        for e in good
    ]
    [interval] = compute_intervals([tally(good)], num_resamples=200)
    assert interval is not None
    assert interval[0] < tally(good).value < interval[1]
    difference = compare_tallies("AP", tally(bad), tally(good), num_resamples=200)
    assert difference.interval[0] > 0
    assert difference.p_value == pytest.approx(1 / 201)
    same = compare_tallies("AP", tally(good), tally(good), num_resamples=50)
    assert (same.value, same.interval, same.p_value) == (0, (0, 0), 1)
    # Examples about one image are drawn together.
    in_pairs = tally(good).group([i // 2 for i in range(40)])
    assert in_pairs.value == tally(good).value
    assert compute_intervals([in_pairs], num_resamples=50) != compute_intervals([tally(good)], num_resamples=50)


def test_an_example_alone() -> None:
    [right, wrong, none, empty] = match([
        Example([box(0)], [box(0)]), Example([box(50)], [box(0)]), Example([box(0)], []), Example([], []),
    ])  # fmt: skip
    assert [compute_alone(each).tolist() for each in (right, wrong, none, empty)] == [
        [value] * 10 for value in (1, 0, 0, 1)
    ]
    for example in draw_examples(5, 10, 2, 3):
        matches = match([example])
        if any(found.num_references for found in matches[0].values()):
            values = compute_alone(matches[0])
            expected = score_by_pycocotools([example])
            assert (values.mean(), values[0], values[5]) == pytest.approx(expected, abs=1e-12)


def test_many_boxes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    edges = np.concatenate([rng.random((10_000, 2)), 1 + rng.random((10_000, 2))], axis=1)
    start = time.perf_counter()
    matches = match_boxes(edges, np.ones(10_000), edges[:2000])
    assert matches.hits.shape == (10, MAX_BOXES)
    assert not match_boxes(np.full((3, 4), np.inf), np.ones(3), np.full((2, 4), 1e308)).hits.any()
    assert time.perf_counter() - start < 5
