"""A file of records, a JSON list or one object a line → what a form makes of each.

Knows nothing about forms. Every record comes out, as Examples or as a Problem; only empty lines are no records.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from lorgnette.data import row_location
from lorgnette.data.text_files import describe_type, parse_json, read_json, read_lines
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

RecordReader = Callable[[Mapping[str, Any], row_location.RowLocation], list[Example]]


def read_records(path: Path, counter: row_location.RowCounter, read: RecordReader) -> Iterator[row_location.Row]:
    """Of a .jsonl line by line; of a .json, which is read as a whole."""
    if path.suffix.lower() == ".jsonl":
        with closing(read_lines(path)) as text:
            for row, line in enumerate(text, start=1):
                if line.strip():
                    yield from _read_line(line, counter.next(row), read)
    else:
        yield from read_list(read_json(path), counter, read)


def read_list(value: object, counter: row_location.RowCounter, read: RecordReader) -> Iterator[row_location.Row]:
    """Of a JSON file's value, which must be a list."""
    if not isinstance(value, list):
        keys = f" with the keys {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, dict) else ""
        raise LorgnetteError(
            f"the file holds {describe_type(value)}{keys}, not a list of examples",
            where=str(counter.source),
            hint='make it a list: [{"id": …, "conversations": […]}, …]',
        )
    for item in value:
        yield from _read_item(item, counter.next(), read)


def _read_line(line: str, location: row_location.RowLocation, read: RecordReader) -> Iterator[row_location.Row]:
    return location.try_read(lambda: read(_require_object(parse_json(line)), location))


def _read_item(item: object, location: row_location.RowLocation, read: RecordReader) -> Iterator[row_location.Row]:
    return location.try_read(lambda: read(_require_object(item), location))


def _require_object(item: object) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise LorgnetteError(
            f"the row is {describe_type(item)}, not an object",
            hint="write {…} per row (one list in all: name it .json)",
        )
    return item
