"""Boxes in any notation, compared in pixels where they are known, else as written."""

import pytest

from lorgnette.metrics.box_answers import list_boxes, list_known_boxes, pair_boxes
from lorgnette.metrics.registry import compute_tallies
from lorgnette.types import PixelBox, PredictionRow


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<|box_start|>(10,20),(30,40)<|box_end|>", [(10, 20, 30, 40)]),
        ("(30, 40) , ( 10,20 )", [(10, 20, 30, 40)]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, {"bbox_2d": [5.5, 6, 7, 8]}]', [(1, 2, 3, 4), (5.5, 6, 7, 8)]),
        ("cat (1,2),(3,4) dog (5,6),(7,8)", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[-1,0,1,1]", [(-1, 0, 1, 1)]),
        ("(1,2) [1,2,3] (1,2),(3)", []),
        ('{"point_2d": [1, 2]}', []),
        ("", []),
    ],
)
def test_boxes_are_parsed(text: str, boxes: list[tuple[float, ...]]) -> None:
    assert [box.corners for box in list_boxes(text)] == boxes


def test_boxes_in_pixels_are_compared_if_both_are_known() -> None:
    """An answer in thousandths, and references in the pixels of files of several sizes."""
    names, texts = ["box-IoU", "box-AP"], ["(0,0),(500,500)", "(0,0),(500,500)"]
    references = [["cat (0,0),(500,500)"], ["dog (0,0),(500,500)"]]
    half, all_of_it = PixelBox((0.0, 0.0, 50.0, 50.0), score=0.5), PixelBox((0.0, 0.0, 100.0, 100.0))
    known = [((half,), ((half,),)), ((half,), ((all_of_it,),))]
    tallies = compute_tallies(names, texts, references, boxes=known)
    assert tallies["box-IoU"].per_example.tolist() == [1, 0.25]
    assert tallies["box-AP"].per_example.tolist() == [1, 0]
    # What is not known in pixels is compared as written, and the note says so.
    tallies = compute_tallies(names, texts, references, boxes=[((), ((half,),)), ((), ((all_of_it,),))])
    assert tallies["box-IoU"].per_example.tolist() == [1, 1]
    assert tallies["box-IoU"].note == "the boxes of 2 of 2 answers are compared as written"
    assert compute_tallies(names, texts, references)["box-IoU"].note is None
    # References in text alone: as written, with the scores.
    tallies = compute_tallies(names, texts, references, boxes=[((half,), ()), ((half,), ())])
    assert tallies["box-AP"].note == "a box's score is the mean probability of its tokens"


def test_labels_and_scores_stay_with_boxes_as_written() -> None:
    """An answer about several images has no pixels; a text without control tokens has no labels."""
    answer, references, in_pixels = pair_boxes(
        "(1,2),(3,4)", ["(1,2),(3,4)"], ((), ((PixelBox((10.0, 20.0, 30.0, 40.0), "cat"),),))
    )
    assert (answer, references) == ((PixelBox((1.0, 2.0, 3.0, 4.0)),), [(PixelBox((1.0, 2.0, 3.0, 4.0), "cat"),)])
    assert not in_pixels
    scored = PixelBox((10.0, 20.0, 30.0, 40.0), score=0.5)
    answer, _, _ = pair_boxes("[1, 2, 3, 4]", ["none"], ((scored,), ()))
    assert answer == (PixelBox((1.0, 2.0, 3.0, 4.0), score=0.5),)


def test_the_boxes_of_rows() -> None:
    own, other, reference = ((PixelBox((float(i), 0.0, 9.0, 9.0)),) for i in range(3))
    row = PredictionRow("a", (), "p", ("r",), base_boxes=own, tuned_boxes=other, reference_boxes=(reference,))
    assert list_known_boxes([row]) == ([(own, (reference,))], [(other, (reference,))])
