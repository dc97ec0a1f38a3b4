"""`write_rows`: what it says and returns. tests/data/test_memory_rows.py has what it writes."""

import io
from pathlib import Path

import PIL.Image
import pytest

from lorgnette import data
from lorgnette.commands.write_rows import write_rows
from lorgnette.errors import LorgnetteError
from lorgnette.report.console import Terminal
from lorgnette.types import Example

RED = PIL.Image.new("RGB", (8, 6), "red")


def test_what_is_left_out_is_said(tmp_path: Path, terminal: Terminal, terminal_output: io.StringIO) -> None:
    rows = [{"photo": RED, "words": "a", "note": "x"}, {"photo": RED, "words": ""}]
    options = {"image_column": "photo", "caption_column": "words", "terminal": terminal}
    with pytest.raises(LorgnetteError, match="1 of 2 rows cannot be used"):
        write_rows(rows, tmp_path / "data", **options)  # type: ignore[arg-type]
    file = write_rows(iter(rows), str(tmp_path / "data"), on_bad_row="skip", **options)  # type: ignore[arg-type]
    assert file == tmp_path / "data" / "data.jsonl"
    [example] = data.read(file)
    assert isinstance(example, Example)
    assert example.reference == "a"
    said = terminal_output.getvalue()
    for text in ("skipped: ", "row 2", "'note'", "rows       1 in "):
        assert text in said
