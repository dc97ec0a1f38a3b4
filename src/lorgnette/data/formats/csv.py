"""CSV with the columns image_path and caption (or file_name and text, as in metadata.csv) ↔ captions.

Knows nothing about JSON, and does not look at the pictures. Paths are relative to the CSV's folder or absolute;
`row` is the line where the row starts, also where a quoted caption runs over several lines.
"""

import csv
import difflib
import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from lorgnette.data import row_location
from lorgnette.data.formats import captions
from lorgnette.data.text_files import read_lines
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

COLUMNS = (captions.IMAGE_COLUMNS[0], captions.CAPTION_COLUMNS[0])


class _Columns(NamedTuple):
    """The names in the first line, and which of them are read."""

    names: list[str]
    image: str
    caption: str


def read_csv(path: Path, options: row_location.ReadOptions) -> Iterator[row_location.Row]:
    """Row by row, never the whole file. Columns beyond the two are not read; empty lines are not rows."""
    places = row_location.create_row_counter(path, options.require_no_name(path))
    with closing(read_lines(path)) as text:
        reader = csv.reader(text, strict=True)
        columns = _read_header(reader, path)
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield _explain_quoting(error, places.next(start), reader.line_num)
                continue
            if cells:
                yield from _read_row(cells, columns, places.next(start))


def _read_row(
    cells: Sequence[str], columns: _Columns, location: row_location.RowLocation
) -> Iterator[row_location.Row]:
    return location.try_read(lambda: _build_examples(cells, columns, location))


def _read_header(reader: Iterator[list[str]], path: Path) -> _Columns:
    try:
        names = [name.strip() for name in next((cells for cells in reader if cells), [])]
    except csv.Error as error:
        raise LorgnetteError(
            f"the first line cannot be read as column names: {error}", where=str(path), hint=_hint_columns()
        ) from error
    if not names:
        raise LorgnetteError("the file is empty", where=str(path), hint=_hint_columns())
    if any("\0" in name for name in names):
        raise LorgnetteError(
            "the file holds NUL characters (UTF-16, or not a CSV at all)", where=str(path), hint="save it as UTF-8"
        )
    try:
        found = [captions.find_column(names, wanted) for wanted in (captions.IMAGE_COLUMNS, captions.CAPTION_COLUMNS)]
    except LorgnetteError as error:
        raise LorgnetteError(f"columns: {error.message}", where=str(path), hint=error.hint) from None
    missing = [column for column in found if column not in names]
    if missing:
        raise LorgnetteError(
            f"no column {' or '.join(map(repr, missing))}; found {', '.join(map(_shorten, names))}",
            where=str(path),
            hint=_suggest_names(missing, names),
        )
    if twice := [column for column in found if names.count(column) > 1]:
        raise LorgnetteError(f"column {twice[0]!r} stands there twice", where=str(path), hint="rename one of them")
    return _Columns(names, *found)


def _suggest_names(missing: Sequence[str], names: Sequence[str]) -> str:
    if len(names) == 1:
        for mark, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if mark in names[0]:
                return f"the columns are separated by {word}: separate them by commas"
    close = {column: difflib.get_close_matches(column, names, n=1, cutoff=0.5) for column in missing}
    renames = [f"rename {_shorten(found[0])} to {column!r}" for column, found in close.items() if found]
    return "; ".join([*renames, _hint_columns()])


def _shorten(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:39] + "…")


def _hint_columns() -> str:
    return f"the first line must name the columns: {','.join(COLUMNS)}"


def _build_examples(cells: Sequence[str], columns: _Columns, location: row_location.RowLocation) -> list[Example]:
    if len(cells) > len(columns.names):
        raise LorgnetteError(
            f"{len(cells)} cells where the first line names {len(columns.names)} columns",
            hint='put double quotes around a caption that holds commas: "a cat, asleep"',
        )
    if any("\0" in cell for cell in cells):
        raise LorgnetteError("a cell holds a NUL character", hint="write the row anew, or remove it")
    row = dict(zip(columns.names, cells, strict=False))
    for column in (columns.image, columns.caption):
        if column not in row:
            raise LorgnetteError(f"no cell for {column!r}", hint="add it, or remove the row")
    return captions.read_record({name: row[name] for name in (columns.image, columns.caption)}, location)


def _explain_quoting(error: csv.Error, location: row_location.RowLocation, last: int) -> Problem:
    """A wrong quote inside a row costs that row; one that is never closed has swallowed the rest of the file."""
    if "expected after" in str(error):
        span = f" (lines {location.row}–{last} were read as this one row)" if last > location.row else ""
        return location.to_problem(
            LorgnetteError(
                f"text follows a closing quote{span}", hint='double the quotes inside a quoted cell: "a ""red"" car"'
            )
        )
    if "field limit" in str(error) and last == location.row:
        raise LorgnetteError(
            f"a cell has more than {csv.field_size_limit():,} characters",
            where=f"{location.source}, row {location.row}",
            hint="shorten it; if it is no cell, a quote before it is not closed",
        ) from error
    raise LorgnetteError(
        f"a quote is opened in the row that starts at line {location.row} and never closed ({error})",
        where=f"{location.source}, row {location.row}",
        hint='close it; a quote inside a quoted cell is doubled: "a ""red"" car"',
    ) from error


def to_record(example: Example, prompt: str) -> dict[str, str]:
    """The record that `line` makes a line of; the prompt is not in it."""
    record = captions.to_record(example, prompt)
    for cell in record.values():
        if "\0" in cell or len(cell) > csv.field_size_limit():
            raise LorgnetteError(
                f"a CSV's cell holds no NUL and at most {csv.field_size_limit():,} characters",
                hint="shorten the text, or take another form",
            )
    return record


def format_row(cells: Sequence[str]) -> str:
    """Cells as a line. The line end is one of two characters so that cells with either of them are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue()
