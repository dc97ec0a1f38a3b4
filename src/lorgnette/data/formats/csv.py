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

from lorgnette.data import rows
from lorgnette.data.formats import captions
from lorgnette.data.text_files import lines
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

COLUMNS = (captions.PICTURE[0], captions.CAPTION[0])


class _Columns(NamedTuple):
    """The names in the first line, and which of them are read."""

    names: list[str]
    picture: str
    caption: str


def examples(path: Path, asked: rows.Asked) -> Iterator[rows.Row]:
    """Row by row, never the whole file. Columns beyond the two are not read; empty lines are not rows."""
    places = rows.places(path, asked.unnamed(path))
    with closing(lines(path)) as text:
        reader = csv.reader(text, strict=True)
        columns = _header(reader, path)
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield _misquoted(error, places.next(start), reader.line_num)
                continue
            if cells:
                yield from _row(cells, columns, places.next(start))


def _row(cells: Sequence[str], columns: _Columns, place: rows.Place) -> Iterator[rows.Row]:
    return place.judged(lambda: _examples(cells, columns, place))


def _header(reader: Iterator[list[str]], path: Path) -> _Columns:
    try:
        names = [name.strip() for name in next((cells for cells in reader if cells), [])]
    except csv.Error as error:
        raise LorgnetteError(
            f"the first line cannot be read as column names: {error}", where=str(path), remedy=_needed()
        ) from error
    if not names:
        raise LorgnetteError("the file is empty", where=str(path), remedy=_needed())
    if any("\0" in name for name in names):
        raise LorgnetteError(
            "the file holds NUL characters (UTF-16, or not a CSV at all)", where=str(path), remedy="save it as UTF-8"
        )
    try:
        found = [captions.column(names, wanted) for wanted in (captions.PICTURE, captions.CAPTION)]
    except LorgnetteError as error:
        raise LorgnetteError(f"columns: {error.what}", where=str(path), remedy=error.remedy) from None
    missing = [column for column in found if column not in names]
    if missing:
        raise LorgnetteError(
            f"no column {' or '.join(map(repr, missing))}; found {', '.join(map(_short, names))}",
            where=str(path),
            remedy=_renaming(missing, names),
        )
    if twice := [column for column in found if names.count(column) > 1]:
        raise LorgnetteError(f"column {twice[0]!r} stands there twice", where=str(path), remedy="rename one of them")
    return _Columns(names, *found)


def _renaming(missing: Sequence[str], names: Sequence[str]) -> str:
    if len(names) == 1:
        for mark, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if mark in names[0]:
                return f"the columns are separated by {word}: separate them by commas"
    close = {column: difflib.get_close_matches(column, names, n=1, cutoff=0.5) for column in missing}
    renames = [f"rename {_short(found[0])} to {column!r}" for column, found in close.items() if found]
    return "; ".join([*renames, _needed()])


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:39] + "…")


def _needed() -> str:
    return f"the first line must name the columns: {','.join(COLUMNS)}"


def _examples(cells: Sequence[str], columns: _Columns, place: rows.Place) -> list[Example]:
    if len(cells) > len(columns.names):
        raise LorgnetteError(
            f"{len(cells)} cells where the first line names {len(columns.names)} columns",
            remedy='put double quotes around a caption that holds commas: "a cat, asleep"',
        )
    if any("\0" in cell for cell in cells):
        raise LorgnetteError("a cell holds a NUL character", remedy="write the row anew, or remove it")
    row = dict(zip(columns.names, cells, strict=False))
    for column in (columns.picture, columns.caption):
        if column not in row:
            raise LorgnetteError(f"no cell for {column!r}", remedy="add it, or remove the row")
    return captions.examples({name: row[name] for name in (columns.picture, columns.caption)}, place)


def _misquoted(error: csv.Error, place: rows.Place, last: int) -> Problem:
    """A wrong quote inside a row costs that row; one that is never closed has swallowed the rest of the file."""
    if "expected after" in str(error):
        span = f" (lines {place.row}–{last} were read as this one row)" if last > place.row else ""
        return place.problem(
            LorgnetteError(
                f"text follows a closing quote{span}", remedy='double the quotes inside a quoted cell: "a ""red"" car"'
            )
        )
    if "field limit" in str(error) and last == place.row:
        raise LorgnetteError(
            f"a cell has more than {csv.field_size_limit():,} characters",
            where=f"{place.source}, row {place.row}",
            remedy="shorten it; if it is no cell, a quote before it is not closed",
        ) from error
    raise LorgnetteError(
        f"a quote is opened in the row that starts at line {place.row} and never closed ({error})",
        where=f"{place.source}, row {place.row}",
        remedy='close it; a quote inside a quoted cell is doubled: "a ""red"" car"',
    ) from error


def written(example: Example, prompt: str) -> dict[str, str]:
    """The record that `line` makes a line of; the prompt is not in it."""
    record = captions.written(example, prompt)
    for cell in record.values():
        if "\0" in cell or len(cell) > csv.field_size_limit():
            raise LorgnetteError(
                f"a CSV's cell holds no NUL and at most {csv.field_size_limit():,} characters",
                remedy="shorten the text, or take another form",
            )
    return record


def line(cells: Sequence[str]) -> str:
    """Cells as a line. The line end is one of two characters so that cells with either of them are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue()
