"""Boxes and points in an image of any size."""

import pytest
from PIL import Image, ImageChops

from lorgnette.report.draw_boxes import draw_boxes, format_box
from lorgnette.types import PixelBox

FILE = (400, 1000)


def test_a_box_as_text() -> None:
    assert format_box(PixelBox((40.0, 200.5, 160.0, 800.0), "the cat")) == "the cat (40,200.5),(160,800)"
    assert format_box(PixelBox((1.0, 2.0), score=0.931)) == "(1,2) 0.93"


def test_only_the_edges_are_drawn_on_a_copy_at_the_scale_of_the_image() -> None:
    image = Image.new("RGB", (200, 100), "black")
    drawn = draw_boxes(image, [PixelBox((40.0, 200.0, 160.0, 800.0))], FILE)
    assert image.getcolors() == [(20_000, (0, 0, 0))]
    lit = Image.eval(drawn.convert("L"), lambda value: 255 * (value > 0)).getbbox()
    assert lit == pytest.approx((20, 20, 81, 81), abs=1)
    assert drawn.getpixel((50, 50)) == drawn.getpixel((5, 5)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("corners", "area"),
    [
        ((40.0, 500.0, 160.0, 800.0), (20, 35, 40, 50)),  # above the corner
        ((40.0, 0.0, 160.0, 800.0), (20, 0, 40, 14)),  # above it is no room
        ((400.0, 1000.0), (185, 85, 200, 100)),
    ],
)
def test_the_number_of_a_box_stands_beside_its_corner(
    corners: tuple[float, ...], area: tuple[int, int, int, int]
) -> None:
    image = Image.new("RGB", (200, 100), "black")
    one, two = (draw_boxes(image, [PixelBox(corners)], FILE, [number]) for number in (1, 2))
    changed = ImageChops.difference(one, two).getbbox()
    assert changed is not None
    assert all(low <= value <= high for value, low, high in zip(changed, area[:2] * 2, area[2:] * 2, strict=True))


def test_a_point_is_drawn() -> None:
    drawn = draw_boxes(Image.new("RGB", (200, 100), "black"), [PixelBox((200.0, 500.0))], FILE)
    assert drawn.getpixel((100, 50)) != (0, 0, 0)
    assert drawn.getpixel((100, 70)) == (0, 0, 0)


@pytest.mark.parametrize("corners", [(0, 0, 0, 0), (900, 900, 1500, 1500), (-50, -50, 2, 2), (-1e9, -1e9, 1e9, 1e9)])
def test_boxes_outside_the_image_are_clipped(corners: tuple[float, ...]) -> None:
    ordered = (*map(min, corners[:2], corners[2:]), *map(max, corners[:2], corners[2:]))
    assert draw_boxes(Image.new("RGB", (40, 30)), [PixelBox(ordered)], FILE).size == (40, 30)
