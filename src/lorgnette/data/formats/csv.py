"""CSV with the columns image_path and caption (or file_name and text, as in metadata.csv) ↔ captions.

A .tsv has tabs instead of commas. Image paths are relative to the file's folder, or absolute; `row` is the line where
the row starts, also if a quoted caption has several lines. Does not open images.
"""

import csv
import difflib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lorgnette.data.formats import captions
from lorgnette.data.formats.columns import Column
from lorgnette.data.formats.records import RecordReader, list_formats
from lorgnette.data.row_location import ReadOptions, Row, RowCounter, RowLocation
from lorgnette.data.text_files import read_lines
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

COLUMNS = (captions.IMAGE_COLUMNS[0], captions.CAPTION_COLUMNS[0])
_COLUMNS_HINT = f"the first line must name the columns: {','.join(COLUMNS)}"


class _Columns(NamedTuple):
    """The names in the first line, those that every row must have, and what reads a row."""

    names: list[str]
    required: Sequence[str]
    read: Callable[[Mapping[str, Any], RowLocation], list[Example]]


def read_csv(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Row by row, never the whole file. Empty lines are not rows."""
    counter = RowCounter(path, options.require_no_name(path))
    with closing(read_lines(path)) as text:
        reader = csv.reader(text, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        columns = _read_header(reader, path, options)
        num_inner = 0  # lines inside cells, which are no rows of a spreadsheet
        while True:
            start = reader.line_num + 1
            sheet_row = start - num_inner
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                num_inner += reader.line_num - start
                yield _explain_quoting(error, counter.next(start, sheet_row), reader.line_num)
                continue
            num_inner += reader.line_num - start
            if cells:
                location = counter.next(start, sheet_row)
                yield from location.try_read(partial(_build_examples, cells, columns, location))


def _read_header(reader: Iterator[list[str]], path: Path, options: ReadOptions) -> _Columns:
    try:
        names = [name.strip() for name in next((cells for cells in reader if cells), [])]
    except csv.Error as error:
        message = f"the first line cannot be read as column names: {error}"
        raise LorgnetteError(message, where=str(path), hint=_COLUMNS_HINT) from error
    if not names:
        raise LorgnetteError("the file is empty", where=str(path), hint=_COLUMNS_HINT)
    if any("\0" in name for name in names):
        message = "the file has NUL characters (UTF-16, or not a CSV)"
        raise LorgnetteError(message, where=str(path), hint="save it as UTF-8")
    if repeated := [name for name in names if name and names.count(name) > 1]:
        raise LorgnetteError(f"there are two columns {repeated[0]!r}", where=str(path), hint="rename one of them")
    read = RecordReader(options, str(path), [Column(name, "text") for name in names])
    return _Columns(names, _list_required_columns(names, read, path), read)


def _list_required_columns(names: Sequence[str], read: RecordReader, path: Path) -> Sequence[str]:
    """The columns without which a row cannot be read: of images, captions and questions, or all of another format."""
    if read.pair is None and list_formats(tuple(names)):
        return names
    questions = [name for name in names if captions.is_named(name, captions.QUESTION_COLUMNS)]
    return [*(read.pair or _find_fixed_columns(names, path)), *questions]


def _find_fixed_columns(names: Sequence[str], path: Path) -> Sequence[str]:
    """The columns with images and captions by their fixed names. Images alone are questions without an answer."""
    try:
        image, caption = captions.find_column(names, captions.IMAGE_COLUMNS), captions.find_caption_column(names)
    except LorgnetteError as error:
        raise LorgnetteError(f"columns: {error.message}", where=str(path), hint=error.hint) from None
    context = (*captions.QUESTION_COLUMNS, *captions.SYSTEM_COLUMNS)
    if image in names and all(name in ("", "id", image) or captions.is_named(name, context) for name in names):
        return (image,)
    if missing := [column for column in (image, caption) if column not in names]:
        message = f"no column {' or '.join(map(repr, missing))}; found {', '.join(map(_shorten, names))}"
        raise LorgnetteError(message, where=str(path), hint=_suggest_names(missing, names))
    return image, caption


def _suggest_names(missing: Sequence[str], names: Sequence[str]) -> str:
    if len(names) == 1:
        for mark, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if mark in names[0]:
                return f"the columns are separated by {word}: separate them by commas"
    similar = {column: difflib.get_close_matches(column, names, n=1, cutoff=0.5) for column in missing}
    renames = [f"rename {_shorten(matches[0])} to {column!r}" for column, matches in similar.items() if matches]
    return "; ".join([*renames, _COLUMNS_HINT])


def _shorten(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:39] + "…")


def _build_examples(cells: Sequence[str], columns: _Columns, location: RowLocation) -> list[Example]:
    if len(cells) > len(columns.names):
        message = f"{len(cells)} cells, but the first line names {len(columns.names)} columns"
        raise LorgnetteError(message, hint='put double quotes around a caption with commas: "a cat, asleep"')
    if any("\0" in cell for cell in cells):
        raise LorgnetteError("a cell has a NUL character", hint="write the row again, or remove it")
    row = dict(zip(columns.names, cells, strict=False))
    for column in columns.required:
        if column not in row:
            raise LorgnetteError(f"no cell for {column!r}", hint="add it, or remove the row")
    return columns.read(row, location)


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
