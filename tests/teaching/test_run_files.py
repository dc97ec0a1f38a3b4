"""The tables of a run are whole, in order, and read back as they were written."""

import json
from pathlib import Path

import pytest

from lorgnette import data
from lorgnette.errors import LorgnetteError
from lorgnette.teaching import run_files

ROWS = [("b.png", 'a "red", cat'), ("a\nb.png", "two\nlines"), ("猫.png", "قطة"), ("=1.png", "=1+1")]


def test_captions_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run" / "captions.csv"
    run_files.write_captions(path, [(Path("images") / name, text) for name, text in ROWS])
    rows = list(data.read(path, prompt="What?"))
    read = [(row.images[0].path, row.reference) for row in rows]  # type: ignore[union-attr]
    assert read == [(tmp_path / "images" / name, text) for name, text in ROWS]


def test_without_answers_there_is_a_header(tmp_path: Path) -> None:
    run_files.write_captions(tmp_path / "captions.csv", [])
    assert (tmp_path / "captions.csv").read_bytes() == b"image_path,caption\r\n"


def test_suggestions_begin_with_the_least_sure(tmp_path: Path) -> None:
    rows = [(Path("/x/a.png"), "a", -0.5), (Path("/x/b.png"), "b, b", -1.25), (Path("/x/c.png"), "c", -0.01)]
    run_files.write_suggestions(tmp_path / "suggestions.csv", rows)
    content = (tmp_path / "suggestions.csv").read_text()
    assert content.split() == [
        "image_path,caption,surety", '/x/b.png,"b,', 'b",-1.250', "/x/a.png,a,-0.500", "/x/c.png,c,-0.010"
    ]  # fmt: skip


def test_a_round_has_its_file(tmp_path: Path) -> None:
    run_files.write_round(tmp_path / "rounds", 3, {"answers": 8})
    assert json.loads((tmp_path / "rounds" / "0003.json").read_text()) == {"answers": 8}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").mkdir()
    with pytest.raises(LorgnetteError) as caught:
        run_files.write_captions(tmp_path / "captions.csv", [])
    assert caught.value.where == str(tmp_path / "captions.csv")
