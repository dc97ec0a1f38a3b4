"""Counts, history, score and files of a run, as its page shows them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from taught_run import open_images

from lorgnette.report.run_dir import RunDir
from lorgnette.teaching.current_image import CurrentImage
from lorgnette.teaching.events import Answered, Mended, Reviewed, Skipped, Suggested, Undone
from lorgnette.teaching.journal import Journal
from lorgnette.teaching.run_record import RunRecord
from lorgnette.teaching.state_view import StateView


@pytest.fixture
def record(tmp_path: Path) -> Iterator[RunRecord]:
    """10 images are answered, the last of them skipped, one was given before; one is gone."""
    images = open_images(tmp_path / "images", 14)
    (tmp_path / "run").mkdir()
    journal = Journal.open(tmp_path / "run" / "journal.jsonl")
    record = RunRecord(journal, images, RunDir(tmp_path / "run"), 8)
    for number in range(11):
        given, name = number == 10, "gone.png" if number == 3 else f"image-{number}.png"
        id, pick = f"{'g' if given else 's'}{number}", "given" if given else "shuffled"
        text = None if given else "suggestion"
        record.write([Suggested(t=0, id=id, image=name, sha="", round=0, pick=pick, text=text)])  # type: ignore[arg-type]
        if number == 9:
            record.write([Skipped(t=0, id=id, reason="user")])
        else:
            record.write([Answered(t=0, id=id, text=f"{number}", seconds=1.0, keys=1, counts=not given)])
    yield record
    journal.close()


def build_view(record: RunRecord, reviewer: str | None = None) -> StateView:
    current = CurrentImage(record, {}, seed=1, use_hardest=False, blind=0, reviewer=reviewer)
    return StateView(record, current, reviewer)


def test_counts(record: RunRecord) -> None:
    view = build_view(record)
    assert view.count() == {"answered": 9, "skipped": 1, "left": 4, "total": 14}
    record.write([Undone(t=0, id="s9"), Undone(t=0, id="s8")])
    assert view.count() == {"answered": 8, "skipped": 0, "left": 6, "total": 14}


def test_the_history_has_the_present_answers_of_a_person(record: RunRecord) -> None:
    view = build_view(record)
    record.write([Mended(t=0, id="s8", text="mended")])
    history = view.list_history()
    assert [entry["id"] for entry in history] == ["s8", "s7", "s6", "s5", "s4", "s2", "s1", "s0"]  # 8 of them
    assert history[0]["text"] == "mended"
    assert (history[0]["suggestion"], history[0]["name"]) == ("suggestion", "image-8.png")
    assert [id for id in record.state.decisions if not view.may_undo(id)] == ["s3", "g10"]


def test_a_review_counts_its_own(record: RunRecord) -> None:
    for number, (reviewer, text) in enumerate([("Zoë", "0"), ("Ann", "1"), ("Zoë", "other")]):
        id, name = f"s{20 + number}", f"image-{number}.png"
        record.write([Suggested(t=0, id=id, image=name, sha="", round=None, pick="review", text=f"{number}")])
        record.write([Reviewed(t=0, id=id, text=text, reviewer=reviewer, seconds=1.0)])
    view = build_view(record, "Zoë")
    assert view.count() == {"answered": 2, "skipped": 0, "left": 7, "total": 9}
    assert [(entry["id"], entry["text"], entry["suggestion"]) for entry in view.list_history()] == [
        ("s22", "other", "2"), ("s20", "0", "0")
    ]  # fmt: skip
    assert [id for id in record.state.decisions if view.may_undo(id)] == ["s20", "s22"]


def test_the_score_is_made_once(record: RunRecord) -> None:
    view = build_view(record)
    first = view.view_score()
    assert (first["counted"], view.view_score() is first) == (9, True)
    record.write([Mended(t=0, id="s8", text="suggestion")])
    assert view.view_score()["counted"] == 9


def test_files_that_are_there(record: RunRecord) -> None:
    view = build_view(record)
    assert set(view.list_files().values()) == {None}
    record.write_captions()
    assert view.list_files()["captions"] == str(record.run_dir.path / "captions.csv")
