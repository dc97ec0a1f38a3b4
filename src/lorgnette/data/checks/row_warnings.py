"""What is unusual about single rows, and probably not meant: texts that hold markers, pictures of an odd shape.

Knows nothing about tokens or models, nor about other rows.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lorgnette.data.checks.scan import Look
from lorgnette.types import Example, Finding

STRETCH = 4
"""More than so many times wider or narrower than the shape it is squeezed into, a picture is hard to recognise."""
LONG = 20
"""Longer side over shorter side where pictures keep their shape."""
TINY = 28
"""Pixels: a side below it is less than one image token of every Qwen-VL model."""

_CONTROL = re.compile(r"<\|\w+\|>")
_MARKER = re.compile(r"<(?:image|img|video|audio)>|</img>|\[IMG\]")


def oddities(rows: Iterable[Example], looks: Mapping[Path, Look], fitted: tuple[int, int] | None) -> Iterator[Finding]:
    """Findings row by row; a picture's shape is told once, at the first row that shows it.

    fitted: the (height, width) every picture is resized to; None where each keeps its shape.
    """
    told: set[Path] = set()
    for row in rows:
        yield from _marks(row)
        for picture in row.pictures:
            if picture.path not in told:
                told.add(picture.path)
                yield from _shape(row, picture.path, looks[picture.path].size, fitted)


def _marks(row: Example) -> Iterator[Finding]:
    text = "\n".join(part for turn in row.turns for part in turn.parts if isinstance(part, str))
    if found := _CONTROL.search(text):
        said = f"a text holds {found[0]}, which is read as characters and never as the model's own token"
        yield Finding.at(row, "control-text", said, "remove it, unless characters are what is meant")
    if found := _MARKER.search(text):
        said = f"a text holds {found[0]}, and no picture stands there"
        yield Finding.at(row, "stray-marker", said, "remove it, or write the row in a form whose markers are read")


def _shape(row: Example, path: Path, size: tuple[int, int], fitted: tuple[int, int] | None) -> Iterator[Finding]:
    width, height = size
    aspect = width / height
    relative = aspect * fitted[0] / fitted[1] if fitted else aspect
    times = max(relative, 1 / relative)
    if times > (STRETCH if fitted else LONG):
        times_longer = f"{times:.0f} times longer one way than the other"
        shape = f"squeezed {times:.0f}-fold into {fitted[1]}×{fitted[0]}" if fitted else times_longer
        said = f"{path.name}, {width}×{height} pixels, is {shape}"
        remedy = "crop it, or let pictures keep their shape: encode.size=null" if fitted else "crop it"
        yield Finding.at(row, "odd-shape", said, remedy, path)
    if min(size) < TINY:
        said = f"{path.name} has only {width}×{height} pixels"
        yield Finding.at(row, "tiny", said, "get it larger, or remove the row", path)
