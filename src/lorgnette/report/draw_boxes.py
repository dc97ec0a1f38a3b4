"""Draws boxes and points into an image, as lines of its own pixels."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from lorgnette.types import PixelBox

_COLORS = ("#e4572e", "#17bebb", "#ffc914", "#76b041", "#a05195")


def draw_boxes(image: Image.Image, boxes: Sequence[PixelBox], size: tuple[int, int]) -> Image.Image:
    """Return a copy with the boxes, each in its color with a white edge, so that it is visible on any background.

    size: (width, height) of the file whose pixels the boxes count; `image` may be a resized one.
    """
    copy = image.copy()
    pen = ImageDraw.Draw(copy)
    width = max(2, round(max(copy.size) / 140))
    scale = copy.width / size[0], copy.height / size[1]
    for number, box in enumerate(boxes):
        color = _COLORS[number % len(_COLORS)]
        # Just outside at most: Pillow would walk along a line of a billion pixels.
        edges = [
            min(max(corner * scale[i % 2], -3 * width), copy.size[i % 2] + 3 * width)
            for i, corner in enumerate(box.corners)
        ]
        if len(edges) == 2:
            pen.circle(edges, 2 * width + 1, fill=color, outline="white")
            continue
        pen.rectangle(edges, outline="white", width=width + 2)
        left, top, right, bottom = edges
        inner = (left + 1, top + 1, max(left + 1, right - 1), max(top + 1, bottom - 1))
        pen.rectangle(inner, outline=color, width=width)
    return copy


def format_box(box: PixelBox) -> str:
    """`cat (10,20),(30,40)`, in pixels of the file; with its score if there is one."""
    pairs = zip(box.corners[::2], box.corners[1::2], strict=True)
    text = f"{box.label} {','.join(f'({x:g},{y:g})' for x, y in pairs)}".strip()
    return text if box.score is None else f"{text} {box.score:.2f}"
