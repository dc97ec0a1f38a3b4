"""Draws boxes and points into an image, as lines of its own pixels."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from lorgnette.types import PixelBox

_COLORS = ("#e4572e", "#17bebb", "#ffc914", "#76b041", "#a05195")


def draw_boxes(
    image: Image.Image, boxes: Sequence[PixelBox], size: tuple[int, int], numbers: Sequence[int] = ()
) -> Image.Image:
    """Return a copy with the boxes, each in its color with a white edge, so that it is visible on any background.

    size: (width, height) of the file whose pixels the boxes count; `image` may be a resized one. numbers: of each box,
    written beside it.
    """
    copy = image.copy()
    pen = ImageDraw.Draw(copy)
    width = max(2, round(max(copy.size) / 140))
    scale = copy.width / size[0], copy.height / size[1]
    places: list[tuple[float, float]] = []
    for index, box in enumerate(boxes):
        color = _COLORS[index % len(_COLORS)]
        # Just outside at most: Pillow would walk along a line of a billion pixels.
        edges = [
            min(max(corner * scale[i % 2], -3 * width), copy.size[i % 2] + 3 * width)
            for i, corner in enumerate(box.corners)
        ]
        places.append((edges[0], edges[1]))
        if len(edges) == 2:
            pen.circle(edges, 2 * width + 1, fill=color, outline="white")
            continue
        pen.rectangle(edges, outline="white", width=width + 2)
        left, top, right, bottom = edges
        inner = (left + 1, top + 1, max(left + 1, right - 1), max(top + 1, bottom - 1))
        pen.rectangle(inner, outline=color, width=width)
    _write_numbers(pen, places, numbers, copy.size)
    return copy


def _write_numbers(
    pen: ImageDraw.ImageDraw, places: Sequence[tuple[float, float]], numbers: Sequence[int], size: tuple[int, int]
) -> None:
    """Each number above the upper left corner of its box, or within the image at its edge. size: of the image."""
    height = max(10, max(size) // 40)
    for index, (place, number) in enumerate(zip(places, numbers, strict=False)):
        corner = place[0] + 1, place[1] - height - 3
        x, y = (min(max(value, 1), max(1, side - height - 1)) for value, side in zip(corner, size, strict=True))
        color = _COLORS[index % len(_COLORS)]
        pen.text((x, y), str(number), color, font_size=height, stroke_width=1, stroke_fill="white")


def format_box(box: PixelBox) -> str:
    """`cat (10,20),(30,40)`, in pixels of the file; with its score if there is one."""
    pairs = zip(box.corners[::2], box.corners[1::2], strict=True)
    text = f"{box.label} {','.join(f'({x:g},{y:g})' for x, y in pairs)}".strip()
    return text if box.score is None else f"{text} {box.score:.2f}"
