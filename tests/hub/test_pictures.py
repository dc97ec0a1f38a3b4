import json
from pathlib import Path
from typing import Any

import pytest

from lorgnette.hub.journal import Journal
from lorgnette.hub.line import HttpClient, RetryPolicy
from lorgnette.hub.pictures import gather, store
from lorgnette.hub.rows import Row

QUICK = RetryPolicy(max_attempts=2, connect_timeout=2, read_timeout=1, initial_pause=0.01)


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    with Journal.open(tmp_path / "d", {"source": "hf:a/b"}, "first") as opened:
        yield opened


def keep(journal: Journal, picture: bytes | str, name: str = "", caption: str = "c") -> Any:
    noted = store(Row("row", (caption,) if caption else (), picture, name), [1], journal)
    journal.note(noted)
    return noted


def test_a_picture_is_saved_once_under_a_name_a_person_knows(journal: Journal, picture: Any) -> None:
    names = [
        keep(journal, picture(1), "COCO_1.jpg").picture,
        keep(journal, picture(1), "COCO_1.jpg").picture,
        keep(journal, picture(2), "COCO_1.jpg").picture,
        keep(journal, picture(1)).picture,
        keep(journal, picture(1)).picture,
        keep(journal, picture(3), "../../etc/pass wd.png").picture,
        keep(journal, picture(4), "..").picture,
    ]
    assert names[0] == names[1] == "COCO_1.jpg"
    assert names[2].startswith("COCO_1-")
    assert names[3] == names[4]
    assert names[5] == "pass_wd.jpg"
    assert len(names[6]) == len("0123456789abcdef.jpg")
    assert {path.name for path in (journal.out / "pictures").iterdir()} == set(names)


def test_names_of_addresses(journal: Journal) -> None:
    assert keep(journal, "http://h/a/COCO_1.jpg", "COCO_1.jpg").picture == "COCO_1.jpg"
    assert keep(journal, "http://h/b/COCO_1.jpg", "COCO_1.jpg").picture.startswith("COCO_1-")
    assert keep(journal, "http://h/x?id=1", "x").picture == "x.jpg"
    assert not (journal.out / "pictures").exists()


def test_faults(journal: Journal, picture: Any) -> None:
    assert keep(journal, b"").fault == "the image cell is empty"
    assert keep(journal, b"<html>").fault == "the image cell holds no picture"
    assert keep(journal, picture(1), caption="").fault == "the caption is empty"


def test_a_token_goes_to_its_hub_only_and_nowhere_else(
    journal: Journal, hub: Any, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    own = Row("row", ("c",), hub.put("/own.jpg", picture(1)), "own.jpg", hub="hf")
    other = Row("row", ("c",), hub.put("/other.jpg", picture(2)), "other.jpg")
    for row in (own, other):
        journal.note(store(row, [1], journal))
    with HttpClient(retry_policy=QUICK) as line:
        gathered = gather(journal.notes, journal, line, None, "train", lambda files, count: None)
    assert (gathered.files, gathered.failed) == (2, {})
    assert "Authorization" in hub.asked("/own.jpg")[0].headers
    assert "Authorization" not in hub.asked("/other.jpg")[0].headers
    assert all("secret" not in path.read_text() for path in journal.folder.iterdir() if path.suffix)
    assert json.loads((journal.folder / "served.jsonl").read_text().splitlines()[0]) == ["own.jpg", "127.0.0.1"]
