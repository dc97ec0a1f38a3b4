"""Events are written before they count; those that the disk did not take come first the next time."""

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from taught_run import open_images

from lorgnette.errors import LorgnetteError
from lorgnette.report.run_dir import RunDir
from lorgnette.teaching.events import Answered, Suggested
from lorgnette.teaching.images import ImageList
from lorgnette.teaching.journal import Journal, read_events
from lorgnette.teaching.run_record import RunRecord


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    return open_images(tmp_path / "images", 6)


@pytest.fixture
def record(tmp_path: Path, images: ImageList) -> Iterator[RunRecord]:
    (tmp_path / "run").mkdir()
    journal = Journal.open(tmp_path / "run" / "journal.jsonl")
    yield RunRecord(journal, images, RunDir(tmp_path / "run"), 8)
    journal.close()


def suggest(number: int, text: str | None = "x", sha: str = "") -> Suggested:
    image = f"image-{number}.png"
    return Suggested(t=0, id=f"s{number}", image=image, sha=sha, round=0, pick="shuffled", text=text)


def answer(number: int, text: str = "x") -> Answered:
    return Answered(t=0, id=f"s{number}", text=text, seconds=1.0, keys=1, counts=True)


def fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_answers_by_number(record: RunRecord) -> None:
    assert record.write([suggest(4), answer(4), suggest(2), answer(2, "two")])
    assert record.write() == []
    assert record.list_answers() == [(4, "x"), (2, "two")]
    assert record.list_without_answer() == [0, 1, 3, 5]
    assert (record.find_number("s4"), record.compute_score().taken) == (4, (True, False))
    assert record.compute_digest([(4, "x")]) != record.compute_digest([(2, "x")])
    record.write_captions()
    assert record.run_dir.captions.read_text().count("\n") == 3
    record.write_round(7, {"answers": 2})
    assert (record.run_dir.rounds / "0007.json").exists()


def test_what_the_disk_does_not_take_does_not_count(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    record.write([suggest(1, None), suggest(2)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(LorgnetteError, match="No space"):
            record.write([answer(2)])
        record.add_pending(suggest(1))
        with pytest.raises(LorgnetteError, match="No space"):
            record.write()
    assert (record.has_failed, record.has_pending, record.list_answers()) == (True, True, [])
    assert record.state.suggested["s1"].text is None
    assert record.write([answer(2)]) == [suggest(1), answer(2)]
    assert (record.has_failed, record.has_pending) == (False, False)
    assert read_events(record.run_dir.journal)[-2:] == [suggest(1), answer(2)]


def test_a_text_for_an_answered_image_is_not_written(record: RunRecord) -> None:
    record.write([suggest(1, None)])
    record.write([answer(1)])
    record.add_pending(suggest(1, "late"))
    assert record.write() == []
    assert not record.has_pending
    assert record.state.suggested["s1"].text is None


def test_images_that_changed_or_are_gone(record: RunRecord, images: ImageList) -> None:
    for number in range(5):
        record.write([suggest(number, sha=record.images.hash_image(number)), answer(number)])
    assert record.check_images() == []
    for number in (1, 3):
        images.paths[number].write_bytes(b"other %d" % number)
    images.paths[2].unlink()
    journal = Journal.open(record.run_dir.journal)
    again = RunRecord(journal, replace(images), record.run_dir, 8)  # read anew
    assert again.check_images() == [
        "changed since the answer was given: image-1.png, image-2.png, image-3.png"
    ]  # 2 is in the list, and cannot be read
    fewer = open_images(images.folder, 6)
    names = [name for name in images.names if (images.folder / name).exists()]
    assert list(fewer.names) == names
    left = RunRecord(journal, fewer, record.run_dir, 8)
    assert left.check_images()[0] == "image-2.png cannot be found, and has an answer that is not used"
    assert [fewer.names[number] for number, _ in left.list_answers()] == [f"image-{i}.png" for i in (0, 1, 3, 4)]
    journal.close()
