"""One raw row's fields: text that is text, a path that can be one, keys that are all read.

Knows nothing about the form (CSV, conversations, messages) the row came in. A field that cannot be used raises a
LorgnetteError; the reader turns it into the row's Problem.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from lorgnette.data.text import kind
from lorgnette.errors import LorgnetteError
from lorgnette.types import Picture, Problem

_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


class Place(NamedTuple):
    """Where a row stands: its file, the row a person would look at, and its number among the data rows."""

    source: Path
    row: int
    number: int

    @property
    def folder(self) -> Path:
        return self.source.parent

    @property
    def id(self) -> str:
        """The tutorial's name for its rows."""
        return f"identity_{self.number}"

    def problem(self, error: LorgnetteError) -> Problem:
        what = error.what if error.where is None else f"{error.what} ({error.where})"
        return Problem(self.source, self.row, what, error.remedy or "correct the row, or remove it")


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
    lost = [key for key in unread if key not in known and record.get(key)]
    if lost:
        raise LorgnetteError(
            f"the row holds {', '.join(map(repr, lost))}, which this form does not read",
            remedy=f"remove it, or say it with {', '.join(map(repr, known))}",
        )


def picture(text: str, folder: Path, *, or_folder: Path | None = None) -> Picture:
    """A picture's path as written, taken from `folder`; where nothing stands there, from `or_folder` if given.

    The result is absolute and normalised; `~` is a character like any other. The file itself is not looked into.
    """
    written = text.strip()
    if not written:
        raise LorgnetteError("a picture's path is empty", remedy="write the path, or remove the row")
    if "\0" in written:
        raise LorgnetteError("a picture's path holds a NUL character", remedy="correct the path")
    if written.lower().startswith("file://"):
        written = unquote(urlsplit(written).path)
    elif _ADDRESS.match(written):
        short = written if len(written) <= 60 else written[:57] + "…"
        raise LorgnetteError(
            f"a picture's path is an address, not a file: {short}", remedy="download it, and write the file's path"
        )
    path = os.path.abspath(folder / written)
    if or_folder is not None and not os.path.isabs(written) and not os.path.exists(path):
        other = os.path.abspath(or_folder / written)
        path = other if os.path.exists(other) else path
    return Picture(Path(path))
