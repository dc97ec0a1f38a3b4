"""Boxes over a page's images, as lines that the browser draws: those of references and of each answer apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.data import read_image_size
from lorgnette.errors import LorgnetteError
from lorgnette.report.draw_boxes import format_box
from lorgnette.types import PixelBox

MAX_DRAWN = 100
"""Boxes of one author in one image: more cannot be told apart, and would fill the page."""
REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class BoxLayer:
    """The boxes of one author. name: in the key. style: the class of its lines."""

    name: str
    style: str
    boxes: Sequence[PixelBox]


@dataclass(frozen=True, slots=True)
class Overlay:
    """What is drawn over an image of width × height pixels. shapes: (style, box, its tooltip)."""

    width: int
    height: int
    shapes: Sequence[tuple[str, PixelBox, str]]

    @property
    def font_size(self) -> float:
        """Of labels, in pixels of the file."""
        return 0.04 * max(self.width, self.height)


def build_overlays(paths: Sequence[Path], layers: Sequence[BoxLayer]) -> list[Overlay | None]:
    """For each image what is drawn over it; None without boxes, and if its size cannot be read."""
    overlays: list[Overlay | None] = []
    for number, path in enumerate(paths):
        shapes = [
            (layer.style, box, f"{layer.name}: {format_box(box)}")
            for layer in layers
            for box in [box for box in layer.boxes if box.image == number][:MAX_DRAWN]
        ]
        try:
            overlays.append(Overlay(*read_image_size(path), shapes) if shapes else None)
        except LorgnetteError:  # the page says so in the image's place
            overlays.append(None)
    return overlays


def build_key(layers: Sequence[BoxLayer]) -> list[tuple[str, str]]:
    """(style, name) of the authors that have boxes, and how many are not drawn."""
    key = []
    for layer in layers:
        counts = [sum(box.image == number for box in layer.boxes) for number in {box.image for box in layer.boxes}]
        num_drawn = sum(min(count, MAX_DRAWN) for count in counts)
        more = f" ({num_drawn} of {sum(counts):,} boxes)" if num_drawn < sum(counts) else ""
        if counts:
            key.append((layer.style, layer.name + more))
    return key


def list_reference_layer(boxes: Sequence[Sequence[PixelBox]]) -> BoxLayer:
    """The boxes of all references of a prompt."""
    return BoxLayer(REFERENCE, "boxes-reference", [box for of_text in boxes for box in of_text])
