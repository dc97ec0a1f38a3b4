import json
from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.download_journal import Journal, JournalRow
from lorgnette.errors import LorgnetteError

REQUEST: dict[str, Any] = {"source": "hf:a/b", "image_column": None}


def make_row(number: int, url: str = "http://h/x", **more: Any) -> JournalRow:
    records = [{"image_path": f"images/{number}.jpg", "caption": "二"}]
    return JournalRow(f"row {number}", 0, [number, number], records, {f"{number}.jpg": [url, "hf", None]}, **more)


def get_rows_file(out: Path) -> Path:
    return out / ".source" / "rows.first.jsonl"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rows = [*map(make_row, range(3)), JournalRow("row 3", 0, [3, 3], message="bad", hint="correct it")]
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        journal.update_state(revision="abc")
        for row in rows:
            journal.add_row(row)
        journal.add_source("0.jpg", "h")
        journal.update_state(num_bytes=journal.num_bytes + 5)
        journal.update_state(num_bytes=journal.num_bytes + 6)
    with Journal.open(tmp_path, REQUEST, "first") as again:
        assert again.rows == rows
        assert (again.revision, again.num_bytes, again.sources, again.is_complete) == ("abc", 11, {"0.jpg": "h"}, False)
        again.complete()
        again.add_source("0.jpg", "another")
    with Journal.open(tmp_path, REQUEST, "first") as third:
        assert third.is_complete
        assert third.sources == {"0.jpg": "another"}
    with Journal.open(tmp_path, REQUEST, "sample-5-seed-0") as sample:
        assert (sample.rows, sample.is_complete, sample.revision) == ([], False, "abc")


def test_a_line_cut_off_by_a_kill_is_read_again(tmp_path: Path) -> None:
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        journal.add_row(make_row(0))
        journal.add_row(make_row(1))
    text = get_rows_file(tmp_path).read_text()
    get_rows_file(tmp_path).write_text(text[:-30])
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        assert journal.rows == [make_row(0)]
        journal.add_row(make_row(1))
    assert get_rows_file(tmp_path).read_text() == text


def test_a_row_whose_embedded_image_is_gone_is_read_again_with_all_behind_it(tmp_path: Path) -> None:
    rows = [make_row(number, url="") for number in range(4)]
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        (tmp_path / "images").mkdir()
        for number, row in enumerate(rows):
            (tmp_path / "images" / f"{number}.jpg").write_bytes(b"x")
            journal.add_row(row)
        journal.complete()
    (tmp_path / "images" / "2.jpg").unlink()
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        assert journal.rows == rows[:2]
        assert not journal.is_complete


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with Journal.open(tmp_path / "out", REQUEST, "key") as journal:
        (tmp_path / "out" / ".source" / "served.jsonl").symlink_to(tmp_path / "mine")
        with pytest.raises(LorgnetteError, match="cannot write: Too many levels of symbolic links"):
            journal.add_source("a.jpg", "here")
    assert (tmp_path / "mine").read_text() == ""


def test_a_folder_with_other_data_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "a", REQUEST, "first") as journal:
        pass
    other = {**REQUEST, "source": "hf:c/d"}
    with Journal.open(tmp_path / "a", other, "first") as journal:
        journal.add_row(make_row(0))
    with pytest.raises(LorgnetteError, match="the folder holds hf:c/d"), Journal.open(tmp_path / "a", REQUEST, "first"):
        pass
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data.jsonl").write_text("mine")
    with (
        pytest.raises(LorgnetteError, match="not downloaded by this command"),
        Journal.open(tmp_path / "b", REQUEST, "first"),
    ):
        pass
    assert json.loads((tmp_path / "a" / ".source" / "state.json").read_text())["request"] == other
