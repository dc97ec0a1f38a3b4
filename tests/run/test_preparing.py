"""`prepare` and `check` say what they found, and what they had to change."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from lorgnette.errors import UsageError
from lorgnette.run import check, prepare


def test_what_check_says(captions: Path, said: io.StringIO) -> None:
    with captions.open("a") as file:
        file.write("gone.png,nothing\n")
    report = check(captions, console=Console(file=said))
    assert (report.rows, report.usable) == (7, 6)
    lines = said.getvalue().splitlines()
    assert lines[0].startswith(f"{captions}, row 8: picture is missing")
    assert lines[1] == "rows       7, 6 usable, 1 broken"


def test_no_rows_are_nothing_to_be_content_with(tmp_path: Path, said: io.StringIO) -> None:
    (tmp_path / "none.csv").write_text("image_path,caption\n")
    assert check(tmp_path / "none.csv", console=Console(file=said)).usable == 0
    assert "there are no rows" in said.getvalue()


def test_what_prepare_says(captions: Path, tmp_path: Path, said: io.StringIO) -> None:
    with captions.open("a") as file:
        file.write("red.png,red once more\ngone.png,nothing\n")
    prepared = prepare(
        captions, tmp_path / "data", holdout=1, split="tail", on_bad_row="skip", console=Console(file=said)
    )
    assert (prepared.train_rows, prepared.test_rows) == (6, 1)
    lines = said.getvalue().splitlines()
    assert lines[0].startswith("left out: ")
    assert lines[1] == "1 pictures stand in both parts: the test asks for what was trained"
    assert lines[-1] == f"test       {prepared.test}, 1"


def test_a_file_is_no_folder_to_write_to(captions: Path) -> None:
    with pytest.raises(UsageError, match="a file, not a folder"):
        prepare(captions, captions)
