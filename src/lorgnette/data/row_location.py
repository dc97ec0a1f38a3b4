"""One raw row's fields: text that is text, keys that are all read, and where the row stands.

Knows nothing about the form (CSV, conversations, messages) the row came in. A field that cannot be used raises a
LorgnetteError; `Place.judged` turns it into the row's Problem.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lorgnette.data.image_resolver import CannotExtractError, ImageResolver
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Image, Problem

DEFAULT_PROMPT = "COCO Yes:"
"""The tutorial's."""
Row = Example | Problem
_VIDEO_OR_AUDIO = {"video", "videos", "audio", "audios"}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a caller wants of a source besides its name; see `source.read`."""

    prompt: str = DEFAULT_PROMPT
    name: str | None = None
    images_from: Path | None = None
    images_to: Path | None = None
    seed: int = 0

    def create_resolver(self, source: Path, *folders: Path) -> ImageResolver:
        return ImageResolver(source, folders=folders, images_from=self.images_from, images_to=self.images_to)

    def require_no_name(self, source: Path) -> "ReadOptions":
        """For a form that has one part only: a name would say nothing."""
        if self.name is not None:
            raise UsageError(
                f"name is {self.name!r}, but this file has no parts with names",
                where=str(source),
                hint="leave it out (it picks a split of dataset_coco.json or an entry of dataset_info.json)",
            )
        return self


class RowLocation(NamedTuple):
    """Where a row stands: its file, the row a person would look at, and its number among the data rows; and what
    its source's rows have in common: the shelf of pictures and the prompt."""

    source: Path
    row: int
    number: int
    resolver: ImageResolver | None = None
    prompt: str = DEFAULT_PROMPT

    @property
    def id(self) -> str:
        """The tutorial's name for its rows."""
        return f"identity_{self.number}"

    def resolve_image(self, text: object, name: str, *, fallback_folder: Path | None = None) -> Image:
        """A picture by its path (or data URI) as written under `name`."""
        return self._resolver.resolve(require_string(text, name), fallback_folder=fallback_folder)

    def extract_image(self, content: bytes, suffix: str) -> Image:
        """A picture from its bytes."""
        return self._resolver.extract(content, suffix)

    @property
    def _resolver(self) -> ImageResolver:
        return self.resolver or ImageResolver(self.source)

    def to_problem(self, error: LorgnetteError) -> Problem:
        what = error.message if error.where is None else f"{error.message} ({error.where})"
        return Problem(self.source, self.row, what, error.hint or "correct the row, or remove it")

    def try_read(self, make: Callable[[], list[Example]]) -> Iterator[Row]:
        """The examples made of this row, or its Problem."""
        try:
            yield from make()
        except CannotExtractError:
            raise
        except LorgnetteError as error:
            yield self.to_problem(error)


@dataclass(slots=True)
class RowCounter:
    """The places of one source's rows, one after the other."""

    source: Path
    resolver: ImageResolver
    prompt: str
    count: int = 0

    def next(self, row: int | None = None) -> RowLocation:
        """row: where a person finds it, if that is not its number."""
        self.count += 1
        return RowLocation(self.source, self.count if row is None else row, self.count, self.resolver, self.prompt)


def create_row_counter(source: Path, options: ReadOptions, *folders: Path) -> RowCounter:
    return RowCounter(source, options.create_resolver(source, *folders), options.prompt)


def require_string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise LorgnetteError(f"{name} is {describe_type(value)}, not text", hint=f"put text into {name}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LorgnetteError(
                f"{name} holds half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is no character",
                hint="write the whole character",
            ) from error
    return value


def require_objects(value: object, name: str) -> list[Mapping[str, Any]]:
    """A list that holds objects only."""
    if not isinstance(value, list):
        raise LorgnetteError(f"{name} is {describe_type(value)}, not a list", hint=f"make {name} a list of objects")
    for i, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise LorgnetteError(f"{name}, item {i} is {describe_type(item)}, not an object", hint="write it as {…}")
    return value


def read_id(record: Mapping[str, Any], location: RowLocation) -> str:
    """The row's own id (text or a number), else its place's."""
    given = record.get("id")
    if given is None:
        return location.id
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return require_string(given, "id")


def reject_unread_keys(record: Mapping[str, Any], read_keys: Sequence[str], unread_keys: Sequence[str]) -> None:
    """Refuse keys that carry something to learn from and that this form does not read: it would be lost unseen."""
    if record.keys().isdisjoint(unread_keys):
        return
    lost = [key for key in unread_keys if key not in read_keys and record.get(key)]
    if moving := [key for key in lost if key in _VIDEO_OR_AUDIO]:
        raise LorgnetteError(
            f"the row holds {', '.join(map(repr, moving))}; only pictures and text can be learned from",
            hint="remove the row, or give single pictures of it",
        )
    if lost:
        raise LorgnetteError(
            f"the row holds {', '.join(map(repr, lost))}, which this form does not read",
            hint=f"remove it, or say it with {', '.join(map(repr, read_keys))}",
        )
