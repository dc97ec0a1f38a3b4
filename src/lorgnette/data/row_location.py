"""What the rows of one source have in common while they are read: options, location, numbering, sampling.

Knows nothing about the format (CSV, conversations, messages) of a row.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from lorgnette.data.fields import require_string
from lorgnette.data.image_resolver import CannotExtractError, ImageResolver
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.image_signature import HEAD_BYTES, SUFFIXES, detect_image_format
from lorgnette.types import Example, Image, Problem

DEFAULT_PROMPT = "COCO Yes:"
"""The tutorial's prompt."""
Row = Example | Problem
T = TypeVar("T")


class UnclearColumnsError(LorgnetteError):
    """It is not clear which columns of a file to read. It is about the whole file, so it stops the reading."""


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The columns with images and captions; None: recognized by type and name."""

    image: str | None = None
    caption: str | None = None

    @property
    def is_explicit(self) -> bool:
        return self.image is not None or self.caption is not None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The options of `data.read`; see there.

    columns: recognize image and caption columns instead of fixed names (parquet, and data sets on hubs).
    locate_image: (path or URL as written, COCO id) → where a remote image will be. source: the file that rows name,
    if it is not the one that is read.
    """

    prompt: str = DEFAULT_PROMPT
    name: str | None = None
    images_from: Path | None = None
    images_to: Path | None = None
    seed: int = 0
    columns: ColumnChoice | None = None
    locate_image: Callable[[str, int | None], Path] | None = None
    source: Path | None = None

    def require_no_name(self, source: Path) -> "ReadOptions":
        """The options, for a format without named parts. Raises UsageError if a name is given."""
        if self.name is not None:
            message = f"name is {self.name!r}, but this file has no named parts"
            hint = "leave it out (it selects a split of dataset_coco.json or an entry of dataset_info.json)"
            raise UsageError(message, where=str(source), hint=hint)
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

    def resolve_image(
        self, value: object, name: str, *, fallback_folder: Path | None = None, coco_id: int | None = None
    ) -> Image:
        """The image that the row has under `name`: a path, a data URI, bytes, or {"bytes", "path"}."""
        path = value.get("path") if isinstance(value, Mapping) else None
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if isinstance(content, bytes):
            if not content:
                raise LorgnetteError(f"{name} is empty, not an image", hint="add the image, or remove the row")
            image_format = detect_image_format(content[:HEAD_BYTES])
            if image_format is None:
                raise LorgnetteError(f"{name} holds no image in a known format", hint="replace it, or remove the row")
            suffix = PurePosixPath(path).suffix if isinstance(path, str) else ""
            return self.extract_image(content, suffix or SUFFIXES[image_format])
        # A path without bytes: Hugging Face's and ms-swift's way to write a path.
        text, resolver = require_string(path if isinstance(path, str) else value, name), self._resolver
        return resolver.resolve(text, fallback_folder=fallback_folder, coco_id=coco_id)

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
        except (CannotExtractError, UnclearColumnsError):  # not about the row: stop reading
            raise
        except LorgnetteError as error:
            yield self.to_problem(error)


class RowCounter:
    """Numbers the rows of one source. folders: the starts of relative image paths; default: the source's folder."""

    def __init__(self, source: Path, options: ReadOptions, *folders: Path) -> None:
        self.source = source = options.source or source
        start, to, locate = options.images_from, options.images_to, options.locate_image
        self.resolver = ImageResolver(source, folders=folders, images_from=start, images_to=to, locate_image=locate)
        self.prompt, self.count = options.prompt, 0

    def next(self, row: int | None = None) -> RowLocation:
        """The next row's location. row: the row as a person counts it, if that is not its number."""
        self.count += 1
        return RowLocation(self.source, self.count if row is None else row, self.count, self.resolver, self.prompt)


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
