import pytest
from PIL import Image

from lorgnette.report.draw_boxes import Box, draw_boxes, parse_boxes

MARKED = "<|object_ref_start|> the cat <|object_ref_end|><|box_start|>(100,200),(400,800)<|box_end|>"


def test_boxes_between_box_tokens_are_parsed() -> None:
    assert parse_boxes(MARKED) == [Box((100, 200, 400, 800), "the cat")]
    assert parse_boxes("a <|box_start|>(1,2),(3,4)<|box_end|> b <|box_start|>(5,6),(7,8)<|box_end|>") == [
        Box((1, 2, 3, 4)),
        Box((5, 6, 7, 8)),
    ]
    assert parse_boxes("(1,2),(3,4) without marks, [1,2,3,4]") == []
    assert parse_boxes("<|box_start|>somewhere<|box_end|>") == []


def test_box_as_text() -> None:
    assert str(Box((100, 200, 400, 800), "the cat")) == "the cat (100,200),(400,800)"
    assert str(Box((0, 0, 1000, 1200))) == "(0,0),(1000,1200), outside the image (0 to 1000)"


def test_thousandths_are_converted_to_pixels() -> None:
    assert Box((100, 200, 400, 800)).to_pixels(200, 50) == (20, 10, 80, 40)


def test_only_the_edges_are_drawn_on_a_copy() -> None:
    image = Image.new("RGB", (200, 100), "black")
    drawn = draw_boxes(image, parse_boxes(MARKED))
    assert image.getcolors() == [(20_000, (0, 0, 0))]
    assert drawn.getpixel((20, 50)) != (0, 0, 0)
    assert drawn.getpixel((50, 20)) != (0, 0, 0)
    assert drawn.getpixel((50, 50)) == drawn.getpixel((5, 5)) == (0, 0, 0)


@pytest.mark.parametrize("edges", [(0, 0, 0, 0), (900, 900, 1500, 1500), (-50, -50, 2, 2), (500, 500, 501, 500)])
def test_boxes_outside_the_image_are_clipped(edges: tuple[float, float, float, float]) -> None:
    assert draw_boxes(Image.new("RGB", (40, 30)), [Box(edges)]).size == (40, 30)
