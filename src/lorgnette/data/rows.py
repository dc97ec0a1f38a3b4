"""One raw row's fields: text that is text, keys that are all read, and where the row stands.

Knows nothing about the form (CSV, conversations, messages) the row came in. A field that cannot be used raises a
LorgnetteError; `Place.judged` turns it into the row's Problem.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lorgnette.data.image_resolver import NoPlaceError, Shelf
from lorgnette.data.text_files import kind
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Picture, Problem

PROMPT = "COCO Yes:"
"""The tutorial's."""
Row = Example | Problem
_MOVING = {"video", "videos", "audio", "audios"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants of a source besides its name; see `source.read`."""

    prompt: str = PROMPT
    name: str | None = None
    images_from: Path | None = None
    pictures_to: Path | None = None
    seed: int = 0

    def shelf(self, source: Path, *folders: Path) -> Shelf:
        return Shelf(source, folders=folders, images_from=self.images_from, pictures_to=self.pictures_to)

    def unnamed(self, source: Path) -> "Asked":
        """For a form that has one part only: a name would say nothing."""
        if self.name is not None:
            raise UsageError(
                f"name is {self.name!r}, but this file has no parts with names",
                where=str(source),
                remedy="leave it out (it picks a split of dataset_coco.json or an entry of dataset_info.json)",
            )
        return self


class Place(NamedTuple):
    """Where a row stands: its file, the row a person would look at, and its number among the data rows; and what
    its source's rows have in common: the shelf of pictures and the prompt."""

    source: Path
    row: int
    number: int
    shelf: Shelf | None = None
    prompt: str = PROMPT

    @property
    def id(self) -> str:
        """The tutorial's name for its rows."""
        return f"identity_{self.number}"

    def picture(self, text: object, name: str, *, or_folder: Path | None = None) -> Picture:
        """A picture by its path (or data URI) as written under `name`."""
        return self._shelf.picture(string(text, name), or_folder=or_folder)

    def laid(self, content: bytes, suffix: str) -> Picture:
        """A picture from its bytes."""
        return self._shelf.laid(content, suffix)

    @property
    def _shelf(self) -> Shelf:
        return self.shelf or Shelf(self.source)

    def problem(self, error: LorgnetteError) -> Problem:
        what = error.what if error.where is None else f"{error.what} ({error.where})"
        return Problem(self.source, self.row, what, error.remedy or "correct the row, or remove it")

    def judged(self, make: Callable[[], list[Example]]) -> Iterator[Row]:
        """The examples made of this row, or its Problem."""
        try:
            yield from make()
        except NoPlaceError:
            raise
        except LorgnetteError as error:
            yield self.problem(error)


@dataclass(slots=True)
class Places:
    """The places of one source's rows, one after the other."""

    source: Path
    shelf: Shelf
    prompt: str
    count: int = 0

    def next(self, row: int | None = None) -> Place:
        """row: where a person finds it, if that is not its number."""
        self.count += 1
        return Place(self.source, self.count if row is None else row, self.count, self.shelf, self.prompt)


def places(source: Path, asked: Asked, *folders: Path) -> Places:
    return Places(source, asked.shelf(source, *folders), asked.prompt)


def string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise LorgnetteError(f"{name} is {kind(value)}, not text", remedy=f"put text into {name}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LorgnetteError(
                f"{name} holds half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is no character",
                remedy="write the whole character",
            ) from error
    return value


def objects(value: object, name: str) -> list[Mapping[str, Any]]:
    """A list that holds objects only."""
    if not isinstance(value, list):
        raise LorgnetteError(f"{name} is {kind(value)}, not a list", remedy=f"make {name} a list of objects")
    for i, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise LorgnetteError(f"{name}, item {i} is {kind(item)}, not an object", remedy="write it as {…}")
    return value


def identity(record: Mapping[str, Any], place: Place) -> str:
    """The row's own id (text or a number), else its place's."""
    given = record.get("id")
    if given is None:
        return place.id
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return string(given, "id")


def must_be_read(record: Mapping[str, Any], known: Sequence[str], unread: Sequence[str]) -> None:
    """Refuse keys that carry something to learn from and that this form does not read: it would be lost unseen."""
    if record.keys().isdisjoint(unread):
        return
    lost = [key for key in unread if key not in known and record.get(key)]
    if moving := [key for key in lost if key in _MOVING]:
        raise LorgnetteError(
            f"the row holds {', '.join(map(repr, moving))}; only pictures and text can be learned from",
            remedy="remove the row, or give single pictures of it",
        )
    if lost:
        raise LorgnetteError(
            f"the row holds {', '.join(map(repr, lost))}, which this form does not read",
            remedy=f"remove it, or say it with {', '.join(map(repr, known))}",
        )
