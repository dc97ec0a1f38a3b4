"""Finds different images that became one file, because each was found by its file name alone.

`A/0.png` and `B/0.png` are two images. A folder with one 0.png, without A and B, has only one of them.
"""

from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path, PurePosixPath

from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.io.paths import get_base_name
from lorgnette.types import Example, Image, Problem

_HINT = "keep the images' folders inside images_from, or give each image its own name"


class NameMatches:
    """The images of all rows that were found by name alone."""

    def __init__(self) -> None:
        self._written: dict[tuple[Path, str], str] = {}
        self._collisions: dict[tuple[Path, str], tuple[str, str]] = {}

    def add(self, example: Example) -> None:
        for image in example.images:
            if image.written and (key := _make_key(image)) not in self._collisions:
                first = self._written.setdefault(key, image.written)
                if not may_be_same(first, image.written):
                    self._collisions[key] = first, image.written
                self._written[key] = max(first, image.written, key=len)

    def find_collisions(self, examples: Iterable[Example]) -> dict[Example, Problem]:
        """The rows with an image that has the file of another."""
        if not self._collisions:
            return {}
        return {
            example: self._explain(example, key)
            for example in examples
            for key in [_make_key(image) for image in example.images if image.written]
            if key in self._collisions
        }

    def _explain(self, example: Example, key: tuple[Path, str]) -> Problem:
        first, second = self._collisions[key]
        error = LorgnetteError(
            "two images are one file, found by its name alone", where=f"{first!r}, {second!r}: {key[0]}", hint=_HINT
        )
        return RowLocation.from_example(example).to_problem(error)


def take_rows(rows: Iterable[Example | Problem], count: int) -> list[Example | Problem]:
    """The first `count` rows; one with an image that has the file of another of all rows is a Problem."""
    remaining, matches = iter(rows), NameMatches()
    taken = list(islice(remaining, count))
    for row in chain(taken, remaining):
        if isinstance(row, Example):
            matches.add(row)
    collisions = matches.find_collisions(row for row in taken if isinstance(row, Example))
    return [collisions.get(row, row) if isinstance(row, Example) else row for row in taken]


def _make_key(image: Image) -> tuple[Path, str]:
    """The file and its name in the data: files in a zip with the same bytes are extracted once."""
    return image.path, get_base_name(image.written)


def may_be_same(first: str, second: str) -> bool:
    """Whether one path is the end of the other: `0.png` and `A/0.png` can be one image, `B/0.png` cannot."""
    shorter, longer = sorted((_split(first), _split(second)), key=len)
    return longer[-len(shorter) :] == shorter


def _split(written: str) -> tuple[str, ...]:
    """The folders and the name of a path from any system, without its root."""
    path = PurePosixPath(written.replace("\\", "/"))
    return tuple(part for part in path.parts if part not in ("/", "//", ".."))
