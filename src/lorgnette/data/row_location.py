"""What the rows of one source have in common while they are read: options, location, numbering, sampling.

Knows nothing about the format (CSV, conversations, messages) of a row.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from lorgnette.data.fields import require_string
from lorgnette.data.image_resolver import CannotExtractError, ImageResolver
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Image, Problem

DEFAULT_PROMPT = "COCO Yes:"
"""The tutorial's prompt."""
Row = Example | Problem
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The options of `data.read`; see there."""

    prompt: str = DEFAULT_PROMPT
    name: str | None = None
    images_from: Path | None = None
    images_to: Path | None = None
    seed: int = 0

    def create_resolver(self, source: Path, *folders: Path) -> ImageResolver:
        return ImageResolver(source, folders=folders, images_from=self.images_from, images_to=self.images_to)

    def require_no_name(self, source: Path) -> "ReadOptions":
        """The options, for a format without named parts. Raises UsageError if a name is given."""
        if self.name is not None:
            raise UsageError(
                f"name is {self.name!r}, but this file has no named parts",
                where=str(source),
                hint="leave it out (it selects a split of dataset_coco.json or an entry of dataset_info.json)",
            )
        return self


class RowLocation(NamedTuple):
    """Where a row is: its file, the row as a person counts it, and its number among the data rows (from 1).

    resolver and prompt are common to all rows of the source.
    """

    source: Path
    row: int
    number: int
    resolver: ImageResolver | None = None
    prompt: str = DEFAULT_PROMPT

    @property
    def id(self) -> str:
        """The tutorial's name for a row."""
        return f"identity_{self.number}"

    def resolve_image(self, text: object, name: str, *, fallback_folder: Path | None = None) -> Image:
        """The image at the path (or in the data URI) that the row has under `name`."""
        return self._resolver.resolve(require_string(text, name), fallback_folder=fallback_folder)

    def extract_image(self, content: bytes, suffix: str) -> Image:
        """The image with these bytes, written to a file."""
        return self._resolver.extract(content, suffix)

    @property
    def _resolver(self) -> ImageResolver:
        return self.resolver or ImageResolver(self.source)

    def to_problem(self, error: LorgnetteError) -> Problem:
        message = error.message if error.where is None else f"{error.message} ({error.where})"
        return Problem(self.source, self.row, message, error.hint or "correct the row, or remove it")

    def try_read(self, read: Callable[[], list[Example]]) -> Iterator[Row]:
        """The examples that `read` makes of this row, or the row's Problem."""
        try:
            yield from read()
        except CannotExtractError:  # the disk, not the row: stop reading
            raise
        except LorgnetteError as error:
            yield self.to_problem(error)


@dataclass(slots=True)
class RowCounter:
    """Numbers the rows of one source."""

    source: Path
    resolver: ImageResolver
    prompt: str
    count: int = 0

    def next(self, row: int | None = None) -> RowLocation:
        """The next row's location. row: the row as a person counts it, if that is not its number."""
        self.count += 1
        return RowLocation(self.source, self.count if row is None else row, self.count, self.resolver, self.prompt)


def create_row_counter(source: Path, options: ReadOptions, *folders: Path) -> RowCounter:
    """folders: the starts of relative image paths; default: the source's folder."""
    return RowCounter(source, options.create_resolver(source, *folders), options.prompt)


def sample_rows(rows: Iterable[T], count: int, seed: int) -> list[T]:
    """`count` random rows in their order, or all if there are fewer. Holds at most `count` (reservoir, algorithm R)."""
    rng = random.Random(seed)
    reservoir: list[tuple[int, T]] = []
    for number, row in enumerate(rows):
        if number < count:
            reservoir.append((number, row))
        elif (slot := rng.randrange(number + 1)) < count:
            reservoir[slot] = number, row
    return [row for _, row in sorted(reservoir, key=lambda item: item[0])]
