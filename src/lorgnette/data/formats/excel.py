"""An Excel workbook → rows of any format with columns, as in a CSV. Read only.

One sheet is read: the only one with cells, or the one that `ReadOptions.name` names. `row` is the row that Excel shows.
Needs openpyxl, which the extra `excel` installs.
"""

import datetime
import importlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.data.formats.csv import Table
from lorgnette.data.formats.zip_archive import check_unpacked_size
from lorgnette.data.row_location import ReadOptions, Row, RowCounter
from lorgnette.errors import LorgnetteError, UsageError

_AS_CSV = "save the sheet as 'CSV UTF-8'"
OTHER_SUFFIXES = (".xls", ".xlsb", ".ods", ".numbers")


def read_excel(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Row by row. Rows without cells are not rows."""
    with _open_workbook(path) as workbook:
        rows = _read_sheet(workbook, options.name, path)
        counter = RowCounter(path, options)
        number, header = next(rows)
        table, is_row = Table.from_rows(header, path, options)
        if is_row:
            location = counter.next(number)
            yield from location.try_read(partial(table.build_examples, header, location))
        for number, cells in rows:
            location = counter.next(number)
            missing = [""] * (len(header) - len(cells))  # empty cells at the end are not in the file
            yield from location.try_read(partial(table.build_examples, cells + missing, location))


def refuse_spreadsheet(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Raises LorgnetteError for the files of other spreadsheets."""
    message = f"spreadsheets of type {path.suffix.lower()!r} are not read"
    raise LorgnetteError(message, where=str(path), hint=f"{_AS_CSV}, or the file as .xlsx")


def _read_sheet(workbook: Any, name: str | None, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(row, its cells) of the rows with cells."""
    sheets = {sheet.title: sheet for sheet in workbook.worksheets}
    if name is not None and name not in sheets:
        message, hint = f"there is no sheet {name!r}", f"name one of {', '.join(map(repr, sheets))}"
        raise UsageError(message, where=str(path), hint=hint)
    chosen = {name: sheets[name]} if name else {title: s for title, s in sheets.items() if any(_iter_rows(s))}
    if len(chosen) != 1:
        fact = f"several sheets have rows: {', '.join(map(repr, chosen))}" if chosen else "the file is empty"
        raise UsageError(fact, where=str(path), hint=f"name one (--name SHEET), or {_AS_CSV}")
    return _iter_rows(next(iter(chosen.values())))


def _iter_rows(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    sheet.reset_dimensions()  # what a file says of its size may be wrong
    for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        cells = [_format_cell(value) for value in values]
        if any(map(str.strip, cells)):
            yield number, cells


def _format_cell(value: object) -> str:
    """A cell as text: 3 instead of 3.0, dates as in ISO 8601."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return (
        "" if value is None else value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)
    )


@contextmanager
def _open_workbook(path: Path) -> Iterator[Any]:
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError as error:
        hint = f"pip install openpyxl, or {_AS_CSV}"
        raise LorgnetteError("Excel workbooks need openpyxl", where=str(path), hint=hint) from error
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                check_unpacked_size(info, path)
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            yield workbook
        finally:
            workbook.close()
    except (LorgnetteError, GeneratorExit):
        raise
    except zipfile.BadZipFile as error:
        message = "no Excel workbook, or one with a password"
        raise LorgnetteError(message, where=str(path), hint=_AS_CSV) from error
    except Exception as error:  # openpyxl raises nearly anything on broken files
        message = f"the workbook cannot be read: {' '.join(str(error).split())[:160]}"
        raise LorgnetteError(message, where=str(path), hint=_AS_CSV) from error
