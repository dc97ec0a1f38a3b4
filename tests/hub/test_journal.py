import json
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.journal import Journal, Noted

REQUEST: dict[str, Any] = {"source": "hf:a/b", "image_column": None}


def note(row: int, **more: Any) -> Noted:
    return Noted(f"row {row}", (f"c {row}", "二"), f"{row}.jpg", [row, "x"], url=f"http://h/{row}", **more)


def rows(out: Path) -> Path:
    return out / ".source" / "rows.first.jsonl"


def test_what_is_noted_is_read_again(tmp_path: Path) -> None:
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        journal.pin("abc")
        for number in range(3):
            journal.note(note(number, key=str(number), number=number))
        journal.serve("0.jpg", "h")
        journal.add_fetched(5)
        journal.add_fetched(6)
    with Journal.open(tmp_path, REQUEST, "first") as again:
        assert again.notes == [note(number, key=str(number), number=number) for number in range(3)]
        assert (again.revision, again.fetched, again.served, again.ended) == ("abc", 11, {"0.jpg": "h"}, False)
        assert again.names == {"0.jpg": "0", "1.jpg": "1", "2.jpg": "2"}
        again.end()
    with Journal.open(tmp_path, REQUEST, "first") as third:
        assert third.ended
    with Journal.open(tmp_path, REQUEST, "sample-5-seed-0") as other:
        assert (other.notes, other.ended, other.revision) == ([], False, "abc")


def test_a_line_that_a_kill_has_torn_is_read_anew(tmp_path: Path) -> None:
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        journal.note(note(0))
        journal.note(note(1))
    text = rows(tmp_path).read_text()
    rows(tmp_path).write_text(text[:-30])
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        assert journal.notes == [note(0)]
        journal.note(note(1))
    assert rows(tmp_path).read_text() == text


def test_a_picture_that_is_gone_is_read_anew_with_all_behind_it(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir(parents=True)
    own = [Noted(f"row {n}", ("c",), f"{n}.jpg", [n]) for n in range(4)]
    (tmp_path / ".source").mkdir()
    (tmp_path / ".source" / "state.json").write_text(json.dumps({"request": REQUEST, "revision": "r"}))
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        for each in own:
            (tmp_path / "pictures" / each.picture).write_bytes(b"x")
            journal.note(each)
        journal.end()
    (tmp_path / "pictures" / "2.jpg").unlink()
    with Journal.open(tmp_path, REQUEST, "first") as journal:
        assert journal.notes == own[:2]
        assert not journal.ended


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "a", REQUEST, "first") as journal:
        pass
    other = {**REQUEST, "source": "hf:c/d"}
    with Journal.open(tmp_path / "a", other, "first") as journal:
        journal.note(note(0))
    with pytest.raises(LorgnetteError, match="the folder holds hf:c/d"), Journal.open(tmp_path / "a", REQUEST, "first"):
        pass
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "captions.csv").write_text("mine")
    with pytest.raises(LorgnetteError, match="not from here"), Journal.open(tmp_path / "b", REQUEST, "first"):
        pass
