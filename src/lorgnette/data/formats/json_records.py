"""A file of records, a JSON list or one object per line → what a reader of records makes of each.

Every record comes out, as Examples or as a Problem; only empty lines are not records. Knows nothing about the formats
of records.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.data.row_location import PendingRow, Row, RowCounter, RowLocation, read_pending
from lorgnette.data.text_files import BrokenRow, describe_type, parse_json, read_json, read_lines
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_OPENINGS = ("{", "[", "[{")
"""The first line of JSON that is printed for people."""
RecordReader = Callable[[Mapping[str, Any], RowLocation], list[Example]]


def read_records(path: Path, counter: RowCounter, read: RecordReader) -> Iterator[Row]:
    """The examples of a .jsonl, line by line, or of a .json, read as a whole."""
    return read_pending(stream_records(path, counter, read))


def stream_records(path: Path, counter: RowCounter, read: RecordReader) -> Iterator[PendingRow]:
    """The rows of `read_records`, not interpreted yet."""
    read_line = partial(_read_line, read)
    if path.suffix.lower() == ".jsonl":
        with closing(read_lines(path)) as text:
            for row, line in enumerate(text, start=1):
                if line.strip():
                    if counter.count == 0 and line.strip() in _OPENINGS:
                        message = "an object goes over several lines, but a .jsonl has one in each line"
                        hint = "write each in one line (jq -c .), or name a file that is one list .json"
                        raise LorgnetteError(message, where=f"{counter.source}, line {row}", hint=hint)
                    yield PendingRow(counter.next(row), line, read_line)
    else:
        yield from stream_list(read_json(path), counter, read)


def stream_list(value: object, counter: RowCounter, read: RecordReader) -> Iterator[PendingRow]:
    """The rows of a JSON file's value, not interpreted yet. Raises LorgnetteError if it is not a list."""
    read_item = partial(_read_item, read)
    if not isinstance(value, list):
        keys = f" with the keys {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, dict) else ""
        message = f"the file holds {describe_type(value)}{keys}, not a list of examples"
        hint = 'make it a list: [{"id": …, "conversations": […]}, …]'
        raise LorgnetteError(message, where=str(counter.source), hint=hint)
    for item in value:
        yield PendingRow(counter.next(), item, read_item)


def _read_line(read: RecordReader, line: str, location: RowLocation) -> list[Example]:
    return _read_item(read, parse_json(line), location)


def _read_item(read: RecordReader, item: object, location: RowLocation) -> list[Example]:
    if isinstance(item, BrokenRow):
        raise LorgnetteError(item.message, hint="remove one of the two")
    if not isinstance(item, dict):
        hint = "write {…} per row (one list in all: name it .json)"
        raise LorgnetteError(f"the row is {describe_type(item)}, not an object", hint=hint)
    return read(item, location)
