"""Boxes in a text as Qwen2-VL writes them, and a picture with them drawn in.

    <|object_ref_start|>the cat<|object_ref_end|><|box_start|>(100,200),(400,800)<|box_end|>

Coordinates are thousandths of the picture's width and height (Qwen2-VL, arXiv 2409.12191, §2.2.1: normalised to
[0, 1000)).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from lorgnette.metrics import box_iou as reading

_BOX_PATTERN = re.compile(
    r"(?:<\|object_ref_start\|>(?P<name>.*?)<\|object_ref_end\|>\s*)?<\|box_start\|>(?P<box>.*?)<\|box_end\|>",
    re.DOTALL,
)
_COLORS = ("#e4572e", "#17bebb", "#ffc914", "#76b041", "#a05195")


@dataclass(frozen=True, slots=True)
class Box:
    """edges: left, top, right, bottom in thousandths."""

    edges: tuple[float, float, float, float]
    name: str = ""

    def __str__(self) -> str:
        left, top, right, bottom = self.edges
        outside = "" if min(self.edges) >= 0 and max(self.edges) <= 1000 else ", beyond the picture's 1000"
        return f"{self.name} ({left:g},{top:g}),({right:g},{bottom:g})".strip() + outside

    def to_pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        left, top, right, bottom = self.edges
        return left * width / 1000, top * height / 1000, right * width / 1000, bottom * height / 1000


def parse_boxes(text: str) -> list[Box]:
    """Those between the marks; what stands in parentheses elsewhere is text."""
    return [
        Box(edges, (match["name"] or "").strip())
        for match in _BOX_PATTERN.finditer(text)
        for edges in reading.parse_boxes(match["box"])
    ]


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy with the boxes, a colour each and a light edge, so that they are seen on any ground."""
    copy = image.copy()
    pen = ImageDraw.Draw(copy)
    line = max(2, round(max(copy.size) / 140))
    for number, box in enumerate(boxes):
        edges = box.to_pixels(*copy.size)
        pen.rectangle(edges, outline="white", width=line + 2)
        inner = (edges[0] + 1, edges[1] + 1, max(edges[0] + 1, edges[2] - 1), max(edges[1] + 1, edges[3] - 1))
        pen.rectangle(inner, outline=_COLORS[number % len(_COLORS)], width=line)
    return copy
