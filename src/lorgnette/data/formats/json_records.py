"""A file of records, a JSON list or one object a line → what a form makes of each.

Knows nothing about forms. Every record comes out, as Examples or as a Problem; only empty lines are no records.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from lorgnette.data import rows
from lorgnette.data.text_files import json_file, json_value, kind, lines
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

Reader = Callable[[Mapping[str, Any], rows.Place], list[Example]]


def examples(path: Path, places: rows.Places, read: Reader) -> Iterator[rows.Row]:
    """Of a .jsonl line by line; of a .json, which is read as a whole."""
    if path.suffix.lower() == ".jsonl":
        with closing(lines(path)) as text:
            for row, line in enumerate(text, start=1):
                if line.strip():
                    yield from _lined(line, places.next(row), read)
    else:
        yield from listed(json_file(path), places, read)


def listed(value: object, places: rows.Places, read: Reader) -> Iterator[rows.Row]:
    """Of a JSON file's value, which must be a list."""
    if not isinstance(value, list):
        keys = f" with the keys {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, dict) else ""
        raise LorgnetteError(
            f"the file holds {kind(value)}{keys}, not a list of examples",
            where=str(places.source),
            remedy='make it a list: [{"id": …, "conversations": […]}, …]',
        )
    for item in value:
        yield from _item(item, places.next(), read)


def _lined(line: str, place: rows.Place, read: Reader) -> Iterator[rows.Row]:
    return place.judged(lambda: read(_object(json_value(line)), place))


def _item(item: object, place: rows.Place, read: Reader) -> Iterator[rows.Row]:
    return place.judged(lambda: read(_object(item), place))


def _object(item: object) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise LorgnetteError(
            f"the row is {kind(item)}, not an object", remedy="write {…} per row (one list in all: name it .json)"
        )
    return item
