"""A data file of any form → its examples, one by one; a folder of pictures → prompts.

Knows nothing about what the rows mean: each form has its own module. Every row of the file comes out, as an Example
or as a Problem; only empty lines are no rows. CSV and JSONL are read line by line, JSON as a whole.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lorgnette.data import conversations, fields, messages, table
from lorgnette.data.pictures import SUFFIXES, verified
from lorgnette.data.text import json_list, json_value, kind, lines
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Picture, Problem, Turn

PROMPT = "COCO Yes:"
"""The tutorial's."""
_FORMS: dict[str, Callable[[Mapping[str, Any], fields.Place], Example]] = {
    "conversations": conversations.example,
    "messages": messages.example,
}
_SUPPORTED = ".csv (image_path,caption), .json or .jsonl (items with 'conversations' or 'messages')"


def read(path: Path, *, prompt: str = PROMPT, rows: int | None = None) -> Iterator[Example | Problem]:
    """The first `rows` rows of a data file, or all. `prompt` is the user's text where the form has none (CSV)."""
    if rows is not None and rows < 1:
        raise UsageError(f"rows is {rows}", remedy="ask for at least one row, or leave rows out for all")
    path = Path(os.path.abspath(path))
    _must_be_there(path)
    if path.is_dir():
        raise UsageError("a folder, not a data file", where=str(path), remedy=f"name a file in it: {_SUPPORTED}")
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return islice(table.examples(path, prompt=prompt), rows)
    if suffix == ".json":
        return islice(_listed(path), rows)
    if suffix == ".jsonl":
        return islice(_lined(path), rows)
    raise UsageError(f"data files of type {suffix or '(none)'!r} cannot be read", where=str(path), remedy=_SUPPORTED)


def pictures_of(path: Path, *, prompt: str = PROMPT) -> Iterator[Example | Problem]:
    """A picture, or the pictures right in a folder by name: each with the prompt, and no answer yet.

    Files of other suffixes and hidden ones (.DS_Store, ._a.jpg) are no pictures. `row` is the place in that order.
    """
    path = Path(os.path.abspath(path))
    _must_be_there(path)
    if not path.is_dir():
        return _prompts([path], path, prompt)
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    if not found:
        raise LorgnetteError("no picture in this folder", where=str(path), remedy="name a folder of JPEGs or PNGs")
    return _prompts(found, path, prompt)


def _prompts(files: list[Path], source: Path, prompt: str) -> Iterator[Example | Problem]:
    for row, file in enumerate(files, start=1):
        try:
            verified(file)
        except LorgnetteError as error:
            yield fields.Place(source, row, row).problem(error)
            continue
        picture = Picture(file)
        yield Example(file.name, (Turn("user", (picture, prompt) if prompt else (picture,)),), source, row)


def _must_be_there(path: Path) -> None:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        said = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be reached: {error}"
        raise LorgnetteError(said, where=str(path), remedy="correct the path") from error


def _listed(path: Path) -> Iterator[Example | Problem]:
    for number, item in enumerate(json_list(path), start=1):
        yield _one(item, fields.Place(path, number, number))


def _lined(path: Path) -> Iterator[Example | Problem]:
    number = 0
    for row, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        number += 1
        place = fields.Place(path, row, number)
        try:
            item = json_value(line)
        except LorgnetteError as error:
            yield place.problem(error)
            continue
        yield _one(item, place)


def _one(item: object, place: fields.Place) -> Example | Problem:
    try:
        if not isinstance(item, dict):
            raise LorgnetteError(
                f"the row is {kind(item)}, not an object", remedy="write {…} per row (one list in all: name it .json)"
            )
        forms = [key for key in _FORMS if key in item]
        if len(forms) == 1:
            return _FORMS[forms[0]](item, place)
        found = ", ".join(repr(key) for key in list(item)[:8]) or "no key at all"
        raise LorgnetteError(
            f"the row has both {forms[0]!r} and {forms[1]!r}" if forms else f"the row has {found}",
            remedy="give it either 'conversations' or 'messages'",
        )
    except LorgnetteError as error:
        return place.problem(error)
