"""CSV with the columns image_path and caption → one Example per row: picture and prompt, then the caption.

Knows nothing about JSON, and does not look at the pictures. Paths are relative to the CSV's folder or absolute;
`row` is the line where the row starts, also where a quoted caption runs over several lines.
"""

import csv
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorgnette.data import fields
from lorgnette.data.text import lines
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem, Turn

COLUMNS = ("image_path", "caption")


def examples(path: Path, *, prompt: str) -> Iterator[Example | Problem]:
    """Row by row, never the whole file. Columns beyond the two are not read; empty lines are not rows."""
    reader = csv.reader(lines(path), strict=True)
    names = _header(reader, path)
    number = 0
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield _misquoted(error, fields.Place(path, start, number), reader.line_num)
            continue
        if not cells:
            continue
        number += 1
        place = fields.Place(path, start, number)
        try:
            yield _example(cells, names, place, prompt)
        except LorgnetteError as error:
            yield place.problem(error)


def _header(reader: Iterator[list[str]], path: Path) -> list[str]:
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
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise LorgnetteError(
            f"no column {' or '.join(map(repr, missing))}; found {', '.join(map(_short, names))}",
            where=str(path),
            remedy=_renaming(missing, names),
        )
    if twice := [column for column in COLUMNS if names.count(column) > 1]:
        raise LorgnetteError(f"column {twice[0]!r} stands there twice", where=str(path), remedy="rename one of them")
    return names


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


def _example(cells: Sequence[str], names: Sequence[str], place: fields.Place, prompt: str) -> Example:
    if len(cells) > len(names):
        raise LorgnetteError(
            f"{len(cells)} cells where the first line names {len(names)} columns",
            remedy='put double quotes around a caption that holds commas: "a cat, asleep"',
        )
    if any("\0" in cell for cell in cells):
        raise LorgnetteError("a cell holds a NUL character", remedy="write the row anew, or remove it")
    row = dict(zip(names, cells, strict=False))
    for column in COLUMNS:
        if column not in row:
            raise LorgnetteError(f"no cell for {column!r}", remedy="add it, or remove the row")
    picture = fields.picture(row["image_path"], place.folder)
    if not row["caption"].strip():
        raise LorgnetteError("the caption is empty", remedy="write one, or remove the row")
    question = Turn("user", (picture, prompt) if prompt else (picture,))
    return Example(place.id, (question, Turn("assistant", (row["caption"],))), place.source, place.row)


def _misquoted(error: csv.Error, place: fields.Place, last: int) -> Problem:
    """A wrong quote inside a row costs that row; one that is never closed has swallowed the rest of the file."""
    if "expected after" in str(error):
        span = f" (lines {place.row}–{last} were read as this one row)" if last > place.row else ""
        return place.problem(
            LorgnetteError(
                f"text follows a closing quote{span}", remedy='double the quotes inside a quoted cell: "a ""red"" car"'
            )
        )
    raise LorgnetteError(
        f"a quote is opened in the row that starts at line {place.row} and never closed ({error})",
        where=f"{place.source}, row {place.row}",
        remedy='close it; a quote inside a quoted cell is doubled: "a ""red"" car"',
    ) from error
