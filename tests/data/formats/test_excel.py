import datetime
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette import data
from lorgnette.data.formats import FILE_FORMATS
from lorgnette.data.formats.excel import OTHER_SUFFIXES
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Problem


@pytest.fixture
def make_workbook(tmp_path: Path) -> Callable[..., Path]:
    """make_workbook(Sheet1=[[…], …]) → a workbook with these sheets."""
    openpyxl = pytest.importorskip("openpyxl", reason="workbooks need the extra excel")

    def make(**sheets: list[list[Any]]) -> Path:
        workbook = openpyxl.Workbook()
        workbook.remove(workbook.active)
        for title, rows in sheets.items():
            sheet = workbook.create_sheet(title)
            for row in rows:
                sheet.append(row)
        workbook.save(tmp_path / "captions.xlsx")
        return tmp_path / "captions.xlsx"

    return make


def test_a_workbook_is_read_like_a_csv(make_workbook: Callable[..., Path]) -> None:
    said: list[str] = []
    rows = [
        ["Image", "Caption", None, "Taken"],
        ["a.jpg", "Zwei Hunde; groß\nund klein", None, datetime.datetime(2026, 5, 1)],
        [],
        ["b.jpg", 3.0],
        ["c.jpg", None],
        [None, None, None],
    ]
    path = make_workbook(Tabelle1=rows, Tabelle2=[])
    one, two, bad = data.read(path, on_columns=said.append)
    assert isinstance(one, Example)
    assert isinstance(two, Example)
    assert (one.row, one.images[0].path, one.reference) == (2, path.with_name("a.jpg"), "Zwei Hunde; groß\nund klein")
    assert (one.unread_keys, two.row, two.reference) == (("Taken",), 4, "3")
    assert isinstance(bad, Problem)
    assert (bad.row, bad.fact) == (5, "the caption is empty")
    assert said == ["captions.xlsx: Image → image, Caption → caption"]


def test_a_sheet_is_chosen_by_its_name(make_workbook: Callable[..., Path]) -> None:
    path = make_workbook(cats=[["a.jpg", "a cat"]], dogs=[["b.jpg", "a dog"]])
    with pytest.raises(UsageError, match=r"several sheets have rows: 'cats', 'dogs' .*--name SHEET"):
        list(data.read(path))
    with pytest.raises(UsageError, match=r"no sheet 'birds' .* name one of 'cats', 'dogs'"):
        list(data.read(path, name="birds"))
    [row] = data.read(path, name="dogs")
    assert isinstance(row, Example)
    assert (row.row, row.reference) == (1, "a dog")


def test_broken_workbooks_are_refused(make_workbook: Callable[..., Path]) -> None:
    path = make_workbook(cats=[])
    with pytest.raises(UsageError, match="the file is empty"):
        list(data.read(path))
    content = path.read_bytes()
    for damaged in (b"", b"\xd0\xcf\x11\xe0 encrypted", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(LorgnetteError, match=r"no Excel workbook, or one with a password .*CSV UTF-8"):
            list(data.read(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<")
    with pytest.raises(LorgnetteError, match=r"the workbook cannot be read: .*CSV UTF-8"):
        list(data.read(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/sharedStrings.xml", bytes(20 << 20))
    with pytest.raises(LorgnetteError, match="would unpack from"):
        list(data.read(path))


def test_without_the_extra_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(
        LorgnetteError, match=r"need openpyxl .* pip install openpyxl, or save the sheet as 'CSV UTF-8'"
    ):
        list(data.read(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("suffix", OTHER_SUFFIXES)
def test_files_of_other_spreadsheets_are_refused_with_the_remedy(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    assert suffix in FILE_FORMATS
    with pytest.raises(LorgnetteError, match=r"are not read .* save the sheet as 'CSV UTF-8', or the file as .xlsx"):
        list(data.read(path))


def test_excels_unicode_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Image\tText\r\na.jpg\tgroß\r\n".encode("utf-16"))
    said: list[str] = []
    [row] = data.read(tmp_path / "a.txt", on_columns=said.append)
    assert isinstance(row, Example)
    assert row.reference == "groß"
    assert said == ["a.txt: Image → image, Text → caption; separator tab, UTF-16"]
