"""What the rows of one source have in common while they are read: options, location, numbering, sampling.

Knows nothing about the format (CSV, conversations, messages) of a row.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from lorgnette.config import DEFAULT_PROMPT
from lorgnette.data.fields import require_string
from lorgnette.data.image_resolver import CannotExtractError, ImageResolver
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.image_signature import HEAD_BYTES, SUFFIXES, detect_image_format
from lorgnette.io.parse import shorten
from lorgnette.types import Example, Image, Problem

EMPTY_CAPTION = "the caption is empty"
"""The fact about a row without a caption in a data set that has some. Its place is the image, if that is a file."""
_MAX_MESSAGE = 500
"""Characters of a row's message: it may name a key or a text of any length."""
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


RECOGNIZED = ColumnChoice()


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The options of `data.read`; see there.

    on_columns: is told what was understood of a table's columns, if they do not have our own names.
    trim: remove blanks around the texts of captions and of the questions beside them.
    locate_image: (path or URL as written, COCO id) → where a remote image will be. source: the file that rows name,
    if it is not the one that is read.
    """

    prompt: str = DEFAULT_PROMPT
    name: str | None = None
    images_from: Path | None = None
    images_to: Path | None = None
    seed: int = 0
    columns: ColumnChoice = RECOGNIZED
    locate_image: Callable[[str, int | None], Path] | None = None
    source: Path | None = None
    trim: bool = True
    on_columns: Callable[[str], None] = lambda text: None

    @property
    def is_remote(self) -> bool:
        """Whether images are downloaded later, so that they may be URLs."""
        return self.locate_image is not None

    def require_no_columns(self, source: Path) -> "ReadOptions":
        """The options, for a format without columns. Raises UsageError if the user named one."""
        if self.columns.is_explicit:
            message, hint = "image_column and caption_column are for tables, and this is none", "leave them out"
            raise UsageError(message, where=str(source), hint=hint)
        return self

    def require_no_name(self, source: Path) -> "ReadOptions":
        """The options, for a format without named parts. Raises UsageError if a name is given."""
        if self.name is not None:
            message = f"name is {self.name!r}, but this file has no named parts"
            hint = "leave it out (it selects a split of dataset_coco.json or an entry of dataset_info.json)"
            raise UsageError(message, where=str(source), hint=hint)
        return self


class RowLocation(NamedTuple):
    """Where a row is: its file, the row as a person counts it, and its number among the data rows (from 1).

    resolver, prompt and trim are common to all rows of the source. sheet_row: as in `Example`.
    """

    source: Path
    row: int
    number: int
    resolver: ImageResolver | None = None
    prompt: str = DEFAULT_PROMPT
    trim: bool = True
    sheet_row: int = 0

    @classmethod
    def from_example(cls, example: Example) -> "RowLocation":
        """Where an example that was read is."""
        return cls(example.source, example.row, example.row, sheet_row=example.sheet_row)

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

    def trim_text(self, text: str) -> str:
        """The text without blanks around it, unless the options keep them."""
        return text.strip() if self.trim else text

    def extract_image(self, content: bytes, suffix: str) -> Image:
        """The image with these bytes, written to a file."""
        return self._resolver.extract(content, suffix)

    @property
    def _resolver(self) -> ImageResolver:
        return self.resolver or ImageResolver(self.source)

    def to_problem(self, error: LorgnetteError) -> Problem:
        message = error.message if error.where is None else f"{error.message} ({error.where})"
        hint = error.hint or "correct the row, or remove it"
        message, hint = (shorten(text, _MAX_MESSAGE) for text in (message, hint))
        return Problem(self.source, self.row, message, hint, error.where or "", self.sheet_row)

    def try_read(self, read: Callable[[], list[Example]]) -> Iterator[Row]:
        """The examples that `read` makes of this row, or the row's Problem."""
        try:
            examples = read()
            yield from [replace(row, sheet_row=self.sheet_row) for row in examples] if self.sheet_row else examples
        except (CannotExtractError, UnclearColumnsError):  # not about the row: stop reading
            raise
        except LorgnetteError as error:
            yield self.to_problem(error)


class PendingRow(NamedTuple):
    """A row that is not interpreted yet: cells, a line, an item. read: what makes examples of it, the same for all rows
    of a source."""

    location: RowLocation
    content: Any
    read: Callable[[Any, RowLocation], list[Example]]

    def read_examples(self) -> Iterator[Row]:
        """Its examples, or its Problem."""
        return self.location.try_read(partial(self.read, self.content, self.location))

    @property
    def can_be_sent(self) -> bool:
        """Whether a forked process can read it: one that opens no file that this process has open."""
        return self.location.resolver is None or not self.location.resolver.has_open_file


def read_pending(rows: Iterable[PendingRow | Row]) -> Iterator[Row]:
    """The examples and problems of the rows, in order."""
    for row in rows:
        if isinstance(row, PendingRow):
            yield from row.read_examples()
        else:
            yield row


class RowStream(Iterator[Row]):
    """The rows of sources, one after the other. `scan` takes them from `sources`, and lets processes interpret them.

    max_rows: the examples and problems to come at most.
    """

    def __init__(self, sources: Iterable[Iterator[PendingRow | Row]], max_rows: int | None = None) -> None:
        self.sources, self.max_rows = list(sources), max_rows
        self._rows = self.interpret(chain.from_iterable(self.sources))

    def __next__(self) -> Row:
        return next(self._rows)

    def interpret(self, rows: Iterable[PendingRow | Row]) -> Iterator[Row]:
        """The examples and problems of these rows, as many as may still come."""
        remaining = read_pending(rows)
        while self.max_rows is None or self.max_rows > 0:
            try:
                row = next(remaining)
            except StopIteration:
                return
            self.count(1)
            yield row

    def count(self, num_rows: int) -> None:
        """Count rows that were interpreted elsewhere."""
        if self.max_rows is not None:
            self.max_rows -= num_rows


class RowCounter:
    """Numbers the rows of one source. folders: the starts of relative image paths; default: the source's folder."""

    def __init__(self, source: Path, options: ReadOptions, *folders: Path) -> None:
        folders = tuple(folder for folder in folders if isinstance(folder, Path))  # a zip's own are searched as a zip
        self.source = source = options.source or source
        start, to, locate = options.images_from, options.images_to, options.locate_image
        self.resolver = ImageResolver(source, folders=folders, images_from=start, images_to=to, locate_image=locate)
        self.prompt, self.trim, self.count = options.prompt, options.trim, 0

    def next(self, row: int | None = None, sheet_row: int | None = None) -> RowLocation:
        """The next row's location. row: the row as a person counts it, if that is not its number. sheet_row: the row
        that a spreadsheet shows."""
        self.count += 1
        number, row = self.count, self.count if row is None else row
        sheet_row = 0 if sheet_row is None or sheet_row == row else sheet_row
        return RowLocation(self.source, row, number, self.resolver, self.prompt, self.trim, sheet_row)


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
