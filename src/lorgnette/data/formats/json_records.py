"""A file of records, a JSON list or one object per line → what a reader of records makes of each.

Every record comes out, as Examples or as a Problem; only empty lines are not records. Knows nothing about the formats
of records.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.data.row_location import Row, RowCounter, RowLocation
from lorgnette.data.text_files import BrokenRow, describe_type, parse_json, read_json, read_lines
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_OPENINGS = ("{", "[", "[{")
"""The first line of JSON that is printed for people."""
RecordReader = Callable[[Mapping[str, Any], RowLocation], list[Example]]


def read_records(path: Path, counter: RowCounter, read: RecordReader) -> Iterator[Row]:
    """The examples of a .jsonl, line by line, or of a .json, read as a whole."""
    if path.suffix.lower() == ".jsonl":
        with closing(read_lines(path)) as text:
            for row, line in enumerate(text, start=1):
                if line.strip():
                    if counter.count == 0 and line.strip() in _OPENINGS:
                        message = "an object goes over several lines, but a .jsonl has one in each line"
                        hint = "write each in one line (jq -c .), or name a file that is one list .json"
                        raise LorgnetteError(message, where=f"{counter.source}, line {row}", hint=hint)
                    location = counter.next(row)
                    yield from location.try_read(partial(_read_line, line, location, read))
    else:
        yield from read_list(read_json(path), counter, read)


def read_list(value: object, counter: RowCounter, read: RecordReader) -> Iterator[Row]:
    """The examples of a JSON file's value. Raises LorgnetteError if it is not a list."""
    if not isinstance(value, list):
        keys = f" with the keys {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, dict) else ""
        message = f"the file holds {describe_type(value)}{keys}, not a list of examples"
        hint = 'make it a list: [{"id": …, "conversations": […]}, …]'
        raise LorgnetteError(message, where=str(counter.source), hint=hint)
    for item in value:
        location = counter.next()
        yield from location.try_read(partial(_read_item, item, location, read))


def _read_line(line: str, location: RowLocation, read: RecordReader) -> list[Example]:
    return _read_item(parse_json(line), location, read)


def _read_item(item: object, location: RowLocation, read: RecordReader) -> list[Example]:
    if isinstance(item, BrokenRow):
        raise LorgnetteError(item.message, hint="remove one of the two")
    if not isinstance(item, dict):
        hint = "write {…} per row (one list in all: name it .json)"
        raise LorgnetteError(f"the row is {describe_type(item)}, not an object", hint=hint)
    return read(item, location)
