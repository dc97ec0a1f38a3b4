"""Boxes as models write them, their overlap, and what the precision of ranked boxes says of its scores."""

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics import box_iou as metrics
from lorgnette.metrics.average_precision import compute_overlaps
from lorgnette.metrics.box_answers import Boxes, list_boxes
from lorgnette.metrics.score import Tally
from lorgnette.types import PixelBox

EDGES = st.integers(0, 20)
BOXES = st.tuples(EDGES, EDGES, EDGES, EDGES)


def read(texts: Sequence[Sequence[str]]) -> list[list[Boxes]]:
    return [[list_boxes(text) for text in alternatives] for alternatives in texts]


def box_iou(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    return metrics.box_iou([list_boxes(text) for text in hypotheses], read(references))


def box_accuracy(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    return metrics.box_accuracy([list_boxes(text) for text in hypotheses], read(references))


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    return float(compute_overlaps(np.array([first], float), np.array([second], float))[0, 0])


@given(BOXES, BOXES)
def test_iou_is_symmetric_and_bounded(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    (a,), (b,) = list_boxes(str(list(first))), list_boxes(str(list(second)))
    forward, backward = metrics._match_boxes((a,), (b,), 0), metrics._match_boxes((b,), (a,), 0)
    assert forward == backward
    assert 0 <= forward <= 1
    assert metrics._match_boxes((a,), (a,), 0) == 1


def test_iou_of_known_boxes() -> None:
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert iou((0, 0, 1, 1), (3, 3, 4, 4)) == 0


def test_matches_are_divided_by_the_larger_number_of_boxes() -> None:
    two, one = "(0,0),(2,2) (10,10),(12,12)", "(10,10),(12,12)"
    assert box_iou([one, two, two, "none"], [[two], [one], [two], [one]]).per_example.tolist() == [0.5, 0.5, 1, 0]
    assert box_iou([one], [["(0,0),(1,1)", "[10,10,12,11]"]]).value == 0.5
    assert box_accuracy([one, one], [["[10,10,12,11]"], ["[10,10,11,11]"]]).per_example.tolist() == [1, 0]


def test_a_box_is_matched_once() -> None:
    assert box_iou(["(0,0),(2,2) (0,0),(2,2)"], [["(0,0),(2,2) (5,5),(6,6)"]]).value == 0.5


def test_references_without_boxes() -> None:
    references = [["nothing"], ["(0,0),(1,1)"]]
    assert box_iou(["there is none", "(0,0),(1,1)"], references).per_example.tolist() == [1, 1]
    assert box_iou(["(0,0),(1,1)", "?"], references).per_example.tolist() == [0, 0]
    tally = box_iou(["a cat"], [["a dog"]])
    assert (tally.value, tally.note) == (None, "no reference has a box")


def box(x: float, label: str = "", score: float | None = None) -> PixelBox:
    return PixelBox((x, 0.0, x + 10, 10.0), label, score=score)


def compute_precision(answers: Sequence[Boxes], references: Sequence[Sequence[Boxes]]) -> Tally:
    return metrics.average_precision(answers, references)[0]


def test_boxes_are_ranked_by_their_score_or_in_the_order_of_the_answer() -> None:
    references = [[(box(0),)]]
    assert compute_precision([(box(0, score=0.9), box(50, score=0.5))], references).value == 1
    assert compute_precision([(box(0, score=0.5), box(50, score=0.9))], references).value == 0.5
    assert compute_precision([(box(0), box(50))], references).value == 1
    assert compute_precision([(box(50), box(0))], references).value == 0.5
    # A box without a score is ranked like one with a score of 1.
    assert compute_precision([(box(0, score=0.9), box(50))], references).value == 0.5


def test_the_value_says_which_scores_it_has() -> None:
    references = [[(box(0),)]]
    assert compute_precision([(box(0, score=0.9),)], references).note == (
        "a box's score is the mean probability of its tokens"
    )
    unknown = "without token probabilities: score 1, and ties keep the answer's order"
    assert compute_precision([(box(0),)], references).note == f"every box {unknown}"
    assert compute_precision([(box(0), box(5, score=0.1))], references).note == f"1 of 2 boxes {unknown}"
    assert compute_precision([(box(0),)], [[()]]).note == "no reference has a box"
    assert compute_precision([()], references).note == "no answer has a box"


def test_labels_count_where_references_have_them() -> None:
    answer = (box(0, "a Cat."), box(20, "dog"))
    assert compute_precision([answer], [[(box(0, "a cat"), box(20, "dog"))]]).value == 1
    assert compute_precision([answer], [[(box(0, "dog"), box(20, "a cat"))]]).value == 0
    assert compute_precision([answer], [[(box(0), box(20))]]).value == 1
    assert compute_precision([(box(0), box(20))], [[(box(0, "cat"), box(20, "dog"))]]).value == 0
    # The label "cat" has 0. The boxes without a label are ranked by themselves: the right one is the second of two.
    assert compute_precision([(box(0), box(20))], [[(box(0, "cat"), box(20))]]).value == (0 + 0.5) / 2


def test_the_best_of_several_references_counts() -> None:
    assert compute_precision([(box(0),)], [[(box(50),), (box(0),)]]).value == 1


def test_answers_of_many_boxes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    corners = np.concatenate([rng.random((10_000, 2)), 1 + rng.random((10_000, 2))], axis=1)
    answer = tuple(PixelBox(tuple(row), f"label {i % 7}") for i, row in enumerate(corners.tolist()))
    start = time.perf_counter()
    assert metrics.box_iou([answer], [[answer[:100]]]).value == pytest.approx(0.01)
    metrics.average_precision([answer], [[answer[:100]]])
    for text in (
        "[" * 100_000,
        "{" * 100_000,
        '{"bbox_2d": [' * 10_000,
        "(1,2),(3,4) " * 10_000,
        "<|box_start|>" * 9_000,
    ):
        list_boxes(text)
    assert time.perf_counter() - start < 10
