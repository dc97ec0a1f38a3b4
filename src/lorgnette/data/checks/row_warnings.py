"""What is unusual about single rows, and probably not meant: texts that hold markers, pictures of an odd shape.

Knows nothing about tokens or models, nor about other rows.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lorgnette.data.checks.scan import ImageInfo
from lorgnette.types import Example, Finding

MAX_STRETCH = 4
"""More than so many times wider or narrower than the shape it is squeezed into, a picture is hard to recognise."""
MAX_ELONGATION = 20
"""Longer side over shorter side where pictures keep their shape."""
MIN_SIDE = 28
"""Pixels: a side below it is less than one image token of every Qwen-VL model."""

_CONTROL = re.compile(r"<\|\w+\|>")
_MARKER = re.compile(r"<(?:image|img|video|audio)>|</img>|\[IMG\]")


def find_row_warnings(
    rows: Iterable[Example], image_infos: Mapping[Path, ImageInfo], fixed_size: tuple[int, int] | None
) -> Iterator[Finding]:
    """Findings row by row; a picture's shape is told once, at the first row that shows it.

    fitted: the (height, width) every picture is resized to; None where each keeps its shape.
    """
    told: set[Path] = set()
    for row in rows:
        yield from _check_markers(row)
        for picture in row.images:
            if picture.path not in told:
                told.add(picture.path)
                yield from _check_shape(row, picture.path, image_infos[picture.path].size, fixed_size)


def _check_markers(row: Example) -> Iterator[Finding]:
    text = "\n".join(part for turn in row.turns for part in turn.parts if isinstance(part, str))
    if found := _CONTROL.search(text):
        said = f"a text holds {found[0]}, which is read as characters and never as the model's own token"
        yield Finding.for_example(row, "control-text", said, "remove it, unless characters are what is meant")
    if found := _MARKER.search(text):
        said = f"a text holds {found[0]}, and no picture stands there"
        yield Finding.for_example(
            row, "stray-marker", said, "remove it, or write the row in a form whose markers are read"
        )


def _check_shape(
    row: Example, path: Path, size: tuple[int, int], fixed_size: tuple[int, int] | None
) -> Iterator[Finding]:
    width, height = size
    aspect = width / height
    relative = aspect * fixed_size[0] / fixed_size[1] if fixed_size else aspect
    times = max(relative, 1 / relative)
    if times > (MAX_STRETCH if fixed_size else MAX_ELONGATION):
        times_longer = f"{times:.0f} times longer one way than the other"
        shape = f"squeezed {times:.0f}-fold into {fixed_size[1]}×{fixed_size[0]}" if fixed_size else times_longer
        said = f"{path.name}, {width}×{height} pixels, is {shape}"
        remedy = "crop it, or let pictures keep their shape: image_size=null" if fixed_size else "crop it"
        yield Finding.for_example(row, "odd-shape", said, remedy, path)
    if min(size) < MIN_SIDE:
        said = f"{path.name} has only {width}×{height} pixels"
        yield Finding.for_example(row, "tiny", said, "get it larger, or remove the row", path)
