"""Boxes as models write them, and their overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.box_iou import Box, box_accuracy, box_iou, iou, parse_boxes

EDGES = st.integers(0, 20)
BOXES = st.tuples(EDGES, EDGES, EDGES, EDGES)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<|box_start|>(10,20),(30,40)<|box_end|>", [(10, 20, 30, 40)]),
        ("(30, 40) , ( 10,20 )", [(10, 20, 30, 40)]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5.5, 6, 7, 8]}]', [(1, 2, 3, 4), (5.5, 6, 7, 8)]),
        ("cat (1,2),(3,4) dog (5,6),(7,8)", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[-1,0,1,1]", [(-1, 0, 1, 1)]),
        ("(1,2) [1,2,3] (1,2),(3)", []),
        ("", []),
    ],
)
def test_boxes_are_parsed(text: str, boxes: list[Box]) -> None:
    assert parse_boxes(text) == boxes


@given(BOXES, BOXES)
def test_iou_is_symmetric_and_bounded(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    (a,), (b,) = parse_boxes(str(list(first))), parse_boxes(str(list(second)))
    assert iou(a, b) == iou(b, a)
    assert 0 <= iou(a, b) <= 1
    assert iou(a, a) == 1


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
