"""Parses boxes in a text as Qwen2-VL writes them, and draws them into an image.

    <|object_ref_start|>the cat<|object_ref_end|><|box_start|>(100,200),(400,800)<|box_end|>

Coordinates are thousandths of the image's width and height (Qwen2-VL, arXiv 2409.12191, §2.2.1: normalized to
[0, 1000)).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from lorgnette.metrics import box_iou

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
        outside = "" if min(self.edges) >= 0 and max(self.edges) <= 1000 else ", outside the image (0 to 1000)"
        return f"{self.name} ({left:g},{top:g}),({right:g},{bottom:g})".strip() + outside

    def to_pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        left, top, right, bottom = self.edges
        return left * width / 1000, top * height / 1000, right * width / 1000, bottom * height / 1000


def parse_boxes(text: str) -> list[Box]:
    """Find boxes between the box tokens; coordinates outside of them are ordinary text."""
    return [
        Box(edges, (match["name"] or "").strip())
        for match in _BOX_PATTERN.finditer(text)
        for edges in box_iou.parse_boxes(match["box"])
    ]


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Return a copy with the boxes, each in its color with a white edge, so that it is visible on any background."""
    copy = image.copy()
    pen = ImageDraw.Draw(copy)
    width = max(2, round(max(copy.size) / 140))
    for number, box in enumerate(boxes):
        left, top, right, bottom = edges = box.to_pixels(*copy.size)
        pen.rectangle(edges, outline="white", width=width + 2)
        inner = (left + 1, top + 1, max(left + 1, right - 1), max(top + 1, bottom - 1))
        pen.rectangle(inner, outline=_COLORS[number % len(_COLORS)], width=width)
    return copy
