"""`prepare` says what it found, and what it had to change."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from lorgnette.commands.prepare import prepare
from lorgnette.errors import UsageError


def test_what_prepare_says(captions: Path, tmp_path: Path, said: io.StringIO) -> None:
    with captions.open("a") as file:
        file.write("red.png,red once more\ngone.png,nothing\n")
    prepared = prepare(
        captions, tmp_path / "data", holdout=1, split="tail", on_bad_row="skip", console=Console(file=said)
    )
    assert (prepared.num_train, prepared.num_test) == (6, 1)
    lines = said.getvalue().splitlines()
    assert lines[0].startswith("left out: ")
    assert lines[1] == "1 pictures stand in both parts: the test asks for what was trained"
    assert lines[-1] == f"test       {prepared.test_path}, 1"


def test_a_file_is_no_folder_to_write_to(captions: Path) -> None:
    with pytest.raises(UsageError, match="a file, not a folder"):
        prepare(captions, captions)


def test_an_address_for_a_files_pictures_is_refused(captions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="download it, and name the folder or zip"):
        prepare(captions, tmp_path / "data", images_from="https://x/y.zip")
    assert not (tmp_path / "data").exists()
