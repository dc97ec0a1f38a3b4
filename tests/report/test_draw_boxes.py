import pytest
from PIL import Image

from lorgnette.report.draw_boxes import Box, draw_boxes, parse_boxes

MARKED = "<|object_ref_start|> the cat <|object_ref_end|><|box_start|>(100,200),(400,800)<|box_end|>"


def test_marked_boxes_with_their_names() -> None:
    assert parse_boxes(MARKED) == [Box((100, 200, 400, 800), "the cat")]
    assert parse_boxes("a <|box_start|>(1,2),(3,4)<|box_end|> b <|box_start|>(5,6),(7,8)<|box_end|>") == [
        Box((1, 2, 3, 4)),
        Box((5, 6, 7, 8)),
    ]
    assert parse_boxes("(1,2),(3,4) without marks, [1,2,3,4]") == []
    assert parse_boxes("<|box_start|>somewhere<|box_end|>") == []


def test_it_says_what_it_is() -> None:
    assert str(Box((100, 200, 400, 800), "the cat")) == "the cat (100,200),(400,800)"
    assert str(Box((0, 0, 1000, 1200))) == "(0,0),(1000,1200), beyond the picture's 1000"


def test_thousandths_become_pixels() -> None:
    assert Box((100, 200, 400, 800)).to_pixels(200, 50) == (20, 10, 80, 40)


def test_a_copy_is_drawn_on_along_the_edges_alone() -> None:
    paper = Image.new("RGB", (200, 100), "black")
    drawn = draw_boxes(paper, parse_boxes(MARKED))
    assert paper.getcolors() == [(20_000, (0, 0, 0))]
    assert drawn.getpixel((20, 50)) != (0, 0, 0)
    assert drawn.getpixel((50, 20)) != (0, 0, 0)
    assert drawn.getpixel((50, 50)) == drawn.getpixel((5, 5)) == (0, 0, 0)


@pytest.mark.parametrize("edges", [(0, 0, 0, 0), (900, 900, 1500, 1500), (-50, -50, 2, 2), (500, 500, 501, 500)])
def test_odd_boxes_are_drawn_as_far_as_they_can_be(edges: tuple[float, float, float, float]) -> None:
    assert draw_boxes(Image.new("RGB", (40, 30)), [Box(edges)]).size == (40, 30)
