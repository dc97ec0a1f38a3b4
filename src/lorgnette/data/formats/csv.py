"""A table of text, CSV or TSV, in the dialect of any spreadsheet ↔ rows of any format with columns.

The first line decides the separator: the one with which most columns have known names. Image paths are relative to the
file's folder, or absolute; `row` is the line where the row starts, also if a quoted caption has several lines. Does
not open images.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lorgnette.data.formats import captions, columns
from lorgnette.data.formats.records import RECORD_FORMATS, RecordReader, list_formats
from lorgnette.data.row_location import (
    ColumnChoice,
    PendingRow,
    ReadOptions,
    Row,
    RowCounter,
    RowLocation,
    read_pending,
)
from lorgnette.data.text_files import detect_table_encoding, read_lines
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

COLUMNS = (captions.IMAGE_COLUMN, captions.CAPTION_COLUMN)
COLUMNS_HINT = f"the first line must name the columns: {','.join(COLUMNS)}"
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


class Table(NamedTuple):
    """The names in the first line, and what reads a row."""

    names: list[str]
    read: RecordReader

    @classmethod
    def from_header(cls, header: Sequence[str], path: Path, options: ReadOptions, note: str = "") -> "Table | None":
        """None if the header is a row: an image and its caption. Raises LorgnetteError if it names no columns."""
        names = [name.strip() for name in header]
        choice = options.columns
        if any("\0" in name for name in names):
            raise LorgnetteError("the file has NUL characters: it is no CSV", where=str(path), hint="save it as UTF-8")
        paths = [index for index, name in enumerate(names) if columns.is_path(name)]
        if paths and not any(map(partial(_is_known, choice), names)):
            if len(list(filter(None, names))) == 2 and len(paths) == 1 and not choice.is_explicit:
                return None
            message = f"the first line names no columns: it has an image, {_shorten(names[paths[0]])}"
            hint = f"add a first line with their names: {','.join(COLUMNS)}"
            raise LorgnetteError(message, where=str(path), hint=hint)
        if repeated := [name for name in names if name and names.count(name) > 1]:
            raise LorgnetteError(f"there are two columns {repeated[0]!r}", where=str(path), hint="rename one of them")
        if note and list_formats(tuple(names)) and not choice.is_explicit:
            options.on_columns(f"{path.name}: {', '.join(filter(None, names))}; {note}")
        return cls(names, RecordReader(options, str(path), is_table=True, note=note))

    @classmethod
    def from_rows(cls, header: Sequence[str], path: Path, options: ReadOptions, note: str = "") -> "tuple[Table, bool]":
        """(the table, whether its header is a row)"""
        if (table := cls.from_header(header, path, options, note)) is not None:
            return table, False
        names = [f"column {number}" if cell.strip() else "" for number, cell in enumerate(header, start=1)]
        [image] = [name for name, cell in zip(names, header, strict=True) if columns.is_path(cell)]
        [caption] = filter(None, {*names} - {image})
        options = replace(options, columns=ColumnChoice(image, caption))
        note = ", ".join(filter(None, ["no line with names", note]))
        return cls(names, RecordReader(options, str(path), is_table=True, note=note)), True

    def build_examples(self, cells: Sequence[str], location: RowLocation) -> list[Example]:
        if len(cells) > len(self.names) and any(cell.strip() for cell in cells[len(self.names) :]):
            message = f"{len(cells)} cells, but the first line names {len(self.names)} columns"
            raise LorgnetteError(message, hint='put double quotes around a caption with separators: "a cat, asleep"')
        if any("\0" in cell for cell in cells):
            raise LorgnetteError("a cell has a NUL character", hint="write the row again, or remove it")
        missing = self.names[len(cells) :]
        row = dict(zip(self.names, [*cells, *[""] * len(missing)], strict=False))
        if "" in row:
            row[""] = "".join(cell for name, cell in zip(self.names, cells, strict=False) if not name)
        if missing and (lost := [name for name in self.read.list_required(row) if name in missing]):
            raise LorgnetteError(f"no cell for {lost[0]!r}", hint="add it, or remove the row")
        return self.read(row, location)


def read_csv(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Row by row, never the whole file. Empty lines, and rows of empty cells, are not rows."""
    return read_pending(stream_csv(path, options))


def stream_csv(path: Path, options: ReadOptions) -> Iterator[PendingRow | Problem]:
    """The rows of `read_csv`, not interpreted yet."""
    counter = RowCounter(path, options.require_no_name(path))
    encoding = detect_table_encoding(path)
    with closing(read_lines(path, encoding)) as text:
        separator, num_skipped, lines = _find_separator(text, path, options.columns)
        reader = csv.reader(lines, strict=True, delimiter=separator)
        header, start = _read_header(reader, path), reader.line_num + num_skipped
        default = "\t" if path.suffix.lower() == ".tsv" else ","
        notes = [*([f"separator {_SEPARATORS.get(separator, separator)}"] if separator != default else [])]
        notes += [encoding.name] if encoding.name != "UTF-8" else []
        table, is_row = Table.from_rows(header, path, options, ", ".join(notes))
        if is_row:
            yield PendingRow(counter.next(start, start - num_skipped), header, table.build_examples)
        num_inner = num_skipped  # lines inside cells, which are no rows of a spreadsheet
        while True:
            start = reader.line_num + num_skipped + 1
            sheet_row = start - num_inner
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                last = reader.line_num + num_skipped
                num_inner += last - start
                yield _explain_quoting(error, counter.next(start, sheet_row), last)
                continue
            num_inner += reader.line_num + num_skipped - start
            if any(map(str.strip, cells)):
                yield PendingRow(counter.next(start, sheet_row), cells, table.build_examples)


def _find_separator(text: Iterator[str], path: Path, choice: ColumnChoice) -> tuple[str, int, Iterable[str]]:
    """(separator, number of lines left out, the other lines). A first line `sep=;` is Excel's own note."""
    head: list[str] = []
    num_skipped, separators = 0, "\t,;|" if path.suffix.lower() == ".tsv" else ",;\t|"
    for line in text:
        head.append(line)
        if num_skipped == 0 and line.strip()[:4].lower() == "sep=" and len(line.rstrip("\r\n")) == 5:
            separators, num_skipped, head = line[4], len(head), []
        elif line.strip():
            break

    def rate(separator: str) -> tuple[int, int, int]:
        names = next(csv.reader(head[-1:], delimiter=separator), [])
        num_known = sum(map(partial(_is_known, choice), names))
        return num_known, sum(map(columns.is_path, names)), len(names)

    return max(separators, key=rate), num_skipped, chain(head, text)


def _is_known(choice: ColumnChoice, name: str) -> bool:
    name = name.strip()
    return name in (choice.image, choice.caption, *RECORD_FORMATS) or columns.is_named(name, columns.KNOWN_NAMES)


def _read_header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        header = next((cells for cells in reader if cells), [])
    except csv.Error as error:
        message = f"the first line cannot be read as column names: {error}"
        raise LorgnetteError(message, where=str(path), hint=COLUMNS_HINT) from error
    if not header:
        raise LorgnetteError("the file is empty", where=str(path), hint=COLUMNS_HINT)
    return header


def _shorten(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:39] + "…")


def _explain_quoting(error: csv.Error, location: RowLocation, last: int) -> Problem:
    """The problem of a row with a wrong quote. Raises if a quote is never closed: it takes in all later rows."""
    where = f"{location.source}, row {location.row}"
    if "expected after" in str(error):
        span = f" (lines {location.row}–{last} were read as this one row)" if last > location.row else ""
        hint = 'double the quotes inside a quoted cell: "a ""red"" car"'
        return location.to_problem(LorgnetteError(f"text follows a closing quote{span}", hint=hint))
    if "field limit" in str(error) and last == location.row:
        message = f"a cell has more than {csv.field_size_limit():,} characters"
        raise LorgnetteError(message, where=where, hint="shorten it, or close the quote before it") from error
    message = f"a quote in the row that starts at line {location.row} is never closed ({error})"
    hint = 'close it; a quote inside a quoted cell is doubled: "a ""red"" car"'
    raise LorgnetteError(message, where=where, hint=hint) from error


def to_record(example: Example, prompt: str) -> dict[str, str]:
    """The record, whose cells `format_row` joins; the prompt is not in it."""
    record = captions.to_record(example, prompt)
    if tuple(record) != COLUMNS:
        message = "a CSV holds one image and one answer in a row, without a system turn"
        raise LorgnetteError(message, hint="choose another format")
    for cell in record.values():
        if "\0" in cell or len(cell) > csv.field_size_limit():
            message = f"a CSV cell cannot hold a NUL or more than {csv.field_size_limit():,} characters"
            raise LorgnetteError(message, hint="shorten the text, or choose another format")
    return record


def format_row(cells: Sequence[str]) -> str:
    """A line of the file. It ends with two characters, so that a cell with either of them is quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue()
