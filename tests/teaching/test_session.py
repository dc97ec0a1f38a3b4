"""A `teach` run as the page sees it, and what its files hold."""

import dataclasses
import errno
import itertools
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
from taught_run import ENOUGH, TAB, FakeLearner, Run, open_images, open_run, truth, write_images

from lorgnette import data
from lorgnette.errors import LorgnetteError
from lorgnette.server.api_errors import ApiError
from lorgnette.teaching import journal, run_record, session
from lorgnette.teaching.events import (
    Answered,
    Event,
    Opened,
    RoundBegun,
    RoundDone,
    RoundFailed,
    Suggested,
    UntunedShown,
)
from lorgnette.teaching.journal import read_events
from lorgnette.teaching.learner import Answer, ModelSuggestion, RoundError, RoundResult
from lorgnette.teaching.score import compute_score


def read_captions(run: Path) -> dict[str, str]:
    """Image's name → caption, by the reader of `check` and `train`, in the file's order."""
    rows = list(data.read(run / "captions.csv", prompt="What?"))
    return {row.images[0].path.name: row.reference for row in rows}  # type: ignore[union-attr]


def list_events(run: Run, kind: type) -> list[Any]:
    return [event for event in read_events(run.folder / "journal.jsonl") if isinstance(event, kind)]


def refuses(code: str) -> Any:
    return pytest.raises(ApiError, check=lambda error: error.code == code)


def answer_slowly(run: Run, count: int) -> list[str]:
    """Answer rightly, and wait after each answer. Returns the images' names."""
    names = []
    for _ in range(count):
        names.append(run.answer()["name"])
        run.until_idle()
    return names


def list_rounds(run: Run) -> list[int]:
    return [len(answers) for answers in run.learner.rounds]


def test_a_run_to_its_end(tmp_path: Path) -> None:
    reports: list[list[Event]] = []
    with open_run(tmp_path, 30, write_report=reports.append, commands=("lorgnette predict",)) as run:
        asked = [run.answer() for _ in range(20)]
        assert [current["number"] for current in asked] == list(range(1, 21))
        view = run.until_idle()
        assert view["counts"] == {"answered": 20, "skipped": 0, "left": 10, "total": 30}
        assert view["tuned_on"] >= ENOUGH
        run.session.finish(TAB)
        view = run.until(lambda view: view["phase"] == "finished")
        assert len(run.learner.rounds[-1]) == 20
        assert view["finished"] == {"answered": 20, "suggested": 10, "total": 30}
        assert {name: bool(path) for name, path in view["files"].items()} == {
            "captions": True, "adapter": True, "report": False, "suggestions": True
        }  # fmt: skip
        # The person goes on, and finishes once more.
        run.answer()
        assert run.session.view(TAB)["phase"] == "ready"
        run.session.finish(TAB)
        run.until(lambda view: view["phase"] == "finished")
        assert [len(report) for report in reports] == sorted(len(report) for report in reports)
    captions = read_captions(run.folder)
    assert list(captions)[:20] == [current["name"] for current in asked]
    assert list(captions.values())[:20] == [truth(current["image"]) for current in asked]
    left = (run.folder / "suggestions.csv").read_text().splitlines()
    assert left[0] == "image_path,caption,surety"
    sureties = [float(line.rsplit(",", 1)[1]) for line in left[1:]]
    assert (len(captions), len(sureties)) == (21, 9)
    assert sureties == sorted(sureties)
    assert reports[-1] == read_events(run.folder / "journal.jsonl")
    assert run.learner.is_closed


def test_a_suggestion_is_on_the_disk_before_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spy: whenever a view is made, all that it shows was written and synced."""
    synced: set[tuple[str, str | None]] = set()
    append, view = journal.Journal.append, session.Session.view
    faults: list[object] = []

    def spy_append(self: journal.Journal, *events: Event) -> None:
        append(self, *events)
        lines = read_events(self.path)
        synced.update((event.id, event.text) for event in lines if isinstance(event, Suggested))

    def spy_view(self: session.Session, tab: str) -> dict[str, Any]:
        with self._changed:
            result = view(self, tab)
            current = result["current"]
            if current and current["state"] != "streaming" and (current["id"], current["text"]) not in synced:
                faults.append(current)
        return result

    monkeypatch.setattr(journal.Journal, "append", spy_append)
    monkeypatch.setattr(session.Session, "view", spy_view)
    with open_run(tmp_path, 20) as run:
        stop = threading.Event()

        def watch() -> None:
            while not stop.is_set():
                run.session.view("other")
                time.sleep(0.0005)

        run.session.claim(TAB)
        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(16):
            run.answer()
        stop.set()
        watcher.join()
        suggested = {event.id: event.text for event in list_events(run, Suggested)}
    assert len(suggested) == 17
    assert faults == []


def test_what_the_disk_does_not_take_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the person wrote stays: in the field, and in the journal as soon as there is room."""
    monkeypatch.setattr(session, "_RETRY_SECONDS", 0.02)
    with open_run(tmp_path, 20) as run:
        current = run.until_asked()
        run.until(lambda view: view["next_image"] is not None)
        time.sleep(0.1)  # the queue is made
        is_full = True
        fsync = os.fsync

        def fail(descriptor: int) -> None:
            if is_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail)
        size = (run.folder / "journal.jsonl").stat().st_size
        with refuses("disk") as caught:
            run.session.answer(TAB, current["id"], "my words", 8, 2.0)
        assert "No space left on device" in caught.value.message
        assert caught.value.status == 500
        view = run.session.view(TAB)
        assert (view["current"]["id"], view["current"]["draft"]) == (current["id"], "my words")
        assert view["counts"]["answered"] == 0
        assert (run.folder / "journal.jsonl").stat().st_size == size
        is_full = False
        run.session.answer(TAB, current["id"], "my words", 8, 2.0)
        assert run.session.view(TAB)["counts"]["answered"] == 1
        assert [answered.text for answered in list_events(run, Answered)] == ["my words"]

        # A text that comes meanwhile is shown once it is written.
        run.learner.suggest_gate.clear()
        for _ in range(9):
            if run.session.view(TAB)["current"]["state"] != "ready":
                break
            run.answer("x")
        waiting = run.until(lambda view: view["current"]["state"] == "waiting")["current"]
        is_full = True
        run.learner.suggest_gate.set()
        view = run.until(lambda view: view["notice"] is not None and "No space" in view["notice"]["text"])
        assert (view["current"]["id"], view["current"]["state"]) == (waiting["id"], "no_model") or (
            view["current"]["text"] is None
        )
        is_full = False
        assert run.until_asked()["id"] == waiting["id"]


def test_answers_are_idempotent_and_stale_ids_are_refused(tmp_path: Path) -> None:
    with open_run(tmp_path, 6) as run:
        first = run.answer("one")
        second = run.until_asked()
        version = run.session.view(TAB)["version"]
        assert run.session.answer(TAB, first["id"], " one\r\n", 3, 1.5) >= version
        assert len(list_events(run, Answered)) == 1
        for text, id in (("two", first["id"]), ("one", "s99"), ("one", "")):
            with refuses("stale") as caught:
                run.session.answer(TAB, id, text, 3, 1.5)
            assert caught.value.status == 409
        with refuses("stale"):
            run.session.skip(TAB, first["id"])
        run.session.skip(TAB, second["id"])
        run.session.skip(TAB, second["id"])
        with refuses("stale"):
            run.session.answer(TAB, second["id"], "two", 1, 1.0)
        view = run.session.view(TAB)
        assert view["counts"] == {"answered": 1, "skipped": 1, "left": 4, "total": 6}
        assert [entry["text"] for entry in view["history"]] == ["one"]


def test_the_newest_tab_wins(tmp_path: Path) -> None:
    with open_run(tmp_path, 6) as run:
        current = run.until_asked()
        assert run.session.view("new")["tab"] == "other"
        version = run.session.view(TAB)["version"]
        assert run.session.claim("new") > version
        assert (run.session.view("new")["tab"], run.session.view(TAB)["tab"]) == ("own", "other")
        calls: list[tuple[Any, ...]] = [
            (run.session.answer, current["id"], "x", 1, 1.0), (run.session.skip, current["id"]), (run.session.undo,),
            (run.session.mend, current["id"], "x"), (run.session.draft, current["id"], "x"),
            (run.session.stop_text, current["id"]), (run.session.request_round,), (run.session.finish,),
        ]  # fmt: skip
        for call, *arguments in calls:
            with refuses("other_tab") as caught:
                call(TAB, *arguments)
            assert caught.value.status == 409
        assert list_events(run, Answered) == []
        run.session.answer("new", current["id"], "x", 1, 1.0)
        assert run.session.claim("new") == run.session.view("new")["version"]


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b \u00a0", "\x07\x00", "half \ud800", "a" * 20_001])
def test_what_is_no_answer_is_refused(tmp_path: Path, text: str) -> None:
    with open_run(tmp_path, 3) as run:
        current = run.until_asked()
        with refuses("no_answer") as caught:
            run.session.answer(TAB, current["id"], text, 1, 1.0)
        assert caught.value.status == 400
        assert run.session.view(TAB)["current"]["id"] == current["id"]


def test_undo_and_mend(tmp_path: Path) -> None:
    with open_run(tmp_path, 20) as run:
        with refuses("nothing"):
            run.session.undo(TAB)
        first, second = run.answer("one"), run.answer("two")
        third = run.until_asked()
        run.session.draft(TAB, third["id"], "thr")
        run.session.undo(TAB)
        view = run.session.view(TAB)
        assert (view["current"]["id"], view["current"]["draft"]) == (second["id"], "two")
        assert view["current"]["text"] == second["text"]
        assert [entry["text"] for entry in view["history"]] == ["one"]
        assert list(read_captions(run.folder).values()) == ["one"]
        run.session.answer(TAB, second["id"], "two again", 4, 1.0)
        view = run.session.view(TAB)
        assert (view["current"]["id"], view["current"]["draft"]) == (third["id"], "thr")  # as it was left
        # The verdict of the first answer stays, and the answer has its old place.
        assert [event.counts for event in list_events(run, Answered)] == [True, True, False]
        assert view["score"]["counted"] == 2

        run.session.mend(TAB, first["id"], "one!")
        run.session.mend(TAB, first["id"], "one!")
        assert list(read_captions(run.folder).items()) == [(first["name"], "one!"), (second["name"], "two again")]
        assert [event.id for event in list_events(run, session.Mended)] == [first["id"]]
        for id in (third["id"], "s77"):
            with refuses("stale"):
                run.session.mend(TAB, id, "x")
        with refuses("no_answer"):
            run.session.mend(TAB, first["id"], " ")

        # A skip is taken back too; then there is one answer after the other to take back.
        run.session.skip(TAB, third["id"])
        run.session.undo(TAB)
        view = run.session.view(TAB)
        assert (view["current"]["id"], view["counts"]["skipped"]) == (third["id"], 0)
        run.session.undo(TAB)
        run.session.undo(TAB)
        assert run.session.view(TAB)["current"]["id"] == first["id"]
        with refuses("nothing"):
            run.session.undo(TAB)
        assert read_captions(run.folder) == {} if (run.folder / "captions.csv").stat().st_size > 30 else True
        run.session.answer(TAB, first["id"], "uno", 1, 1.0)
        run.session.answer(TAB, second["id"], "due", 1, 1.0)
        assert list(read_captions(run.folder).values()) == ["uno", "due"]
        assert run.session.view(TAB)["current"]["id"] == third["id"]


def test_an_undone_answer_is_not_trained_on(tmp_path: Path) -> None:
    with open_run(tmp_path, 20) as run:
        for _ in range(4):
            run.answer("wrong")
        run.until(lambda view: view["tuned_on"] == 4)
        run.session.undo(TAB)
        run.session.request_round(TAB)
        run.until(lambda view: view["tuned_on"] == 3)
        run.session.request_round(TAB)
        assert run.session.view(TAB)["notice"]["text"] == "Nothing is new since the last round: not tuned."
    assert list_rounds(run) == [4, 3]


def test_a_slow_persons_rounds(tmp_path: Path) -> None:
    """After 4 and 8 answers, then every 8; those without a correction among them are needless."""
    with open_run(tmp_path, 60) as run:
        rounds = []
        for count in range(1, 42):
            run.answer(None if count != 30 else "something else")
            rounds.append(run.until_idle()["tuned_on"])
            if count == 24:
                assert run.session.view(TAB)["notice"]["text"] == "The last 8 were all right: not tuned."
    # Suggestion 9 was shown before the second round ended. 17–24 are right, 30 is corrected, 33–40 are right again.
    assert list_rounds(run) == [4, 8, 16, 32]
    assert [event.answers for event in list_events(run, RoundDone)] == [4, 8, 16, 32]
    assert rounds == [0] * 3 + [4] * 4 + [8] * 8 + [16] * 16 + [32] * 10
    texts = [answer.text for answer in run.learner.rounds[-1]]
    assert texts[:3] == [answer.text for answer in run.learner.rounds[0]][:3]


def test_a_fast_persons_rounds(tmp_path: Path) -> None:
    """Answers come faster than rounds end: one round at a time, and what waits is never changed in the field."""
    with open_run(tmp_path, 80, learner=FakeLearner(80, lambda image, answers: f"wrong {answers}")) as run:
        for _ in range(3):
            run.answer()
        run.until_idle()
        run.learner.gate.clear()
        run.answer()  # the fourth
        view = run.until(lambda view: view["round"] is not None and view["round"]["total"] > 0)
        assert (view["round"]["number"], view["round"]["answers"], view["round"]["total"]) == (1, 4, 4)
        shown = []
        while True:
            view = run.session.view(TAB)
            if view["current"]["state"] != "ready":
                break
            shown.append(view["current"]["text"])
            run.session.answer(TAB, view["current"]["id"], "right", 1, 0.2)
        assert set(shown) == {"wrong 0"}
        assert len(shown) == 9  # the one in the field, and the 8 that were ready
        assert view["current"]["state"] == "waiting"
        run.learner.gate.set()
        view = run.until(lambda view: view["tuned_on"] == 13)
        # The queue was used up and the next round due, so it went first.
        assert run.until_asked()["text"] == "wrong 13"
    assert list_rounds(run) == [4, 13]
    assert [images for images, _ in run.learner.asked if len(images) == 1][-1] == [view["current"]["image"]]


def test_a_fast_person_does_not_keep_a_slow_model_from_learning(tmp_path: Path) -> None:
    """Suggestions take longer than answers, so the queue is never full when a round is due."""

    class SlowLearner(FakeLearner):
        def suggest(self, images: Sequence[int], **options: Any) -> list[ModelSuggestion]:
            time.sleep(0.03)
            return super().suggest(images, **options)

    with open_run(tmp_path, 60, learner=SlowLearner(60, lambda image, answers: "wrong")) as run:
        for _ in range(30):
            run.answer()
        run.until_idle()
    first, second, *_ = list_rounds(run)
    assert (first <= 20, second <= 30) == (True, True)


@pytest.mark.parametrize("seconds", [0.5, 30.0])
def test_a_person_who_waits_gets_a_suggestion_between_two_long_rounds(tmp_path: Path, seconds: float) -> None:
    """During a long round the person has used up all suggestions, and answered so many images that the next is due."""
    log: list[int] = []

    class LoggingLearner(FakeLearner):
        def suggest(self, images: Sequence[int], **options: Any) -> list[ModelSuggestion]:
            log.append(len(images))
            return super().suggest(images, **options)

        def train(self, answers: Sequence[Answer], **options: Any) -> RoundResult:
            result = super().train(answers, **options)
            log.append(0)
            return dataclasses.replace(result, seconds=seconds)

    learner = LoggingLearner(60, lambda image, answers: "wrong")
    learner.gate.clear()
    with open_run(tmp_path, 60, learner=learner) as run:
        for _ in range(4):
            run.answer()
        run.until(lambda view: view["round"] is not None)
        while (view := run.session.view(TAB))["current"]["state"] == "ready":
            run.session.answer(TAB, view["current"]["id"], "right", 3, 1.5)
        learner.gate.set()
        run.until_idle()
    rounds = log[log.index(0) :]
    assert rounds[: rounds.index(0, 1) + 1] == ([0, 0] if seconds < 1 else [0, 1, 8, 0])


def test_a_round_makes_unseen_suggestions_anew(tmp_path: Path) -> None:
    with open_run(tmp_path, 40, learner=FakeLearner(40, lambda image, answers: f"{image} after {answers}")) as run:
        answer_slowly(run, 3)
        run.answer()
        seen = run.until_asked()
        view = run.until(lambda view: view["tuned_on"] == 4)
        assert view["notice"] == {"kind": "tuned", "text": "Tuned on 4 answers in 0.5 s.",
                                  "details": "4 steps, loss 0.10", "images": [], "action": ""}  # fmt: skip
        assert run.session.view(TAB)["current"]["text"] == seen["text"] == f"{seen['image']} after 0"
        next_image = run.session.view(TAB)["next_image"]
        run.answer()
        after = run.until_asked()
        assert (after["image"], after["text"], after["round"]) == (next_image, f"{next_image} after 4", 1)


def test_a_round_on_demand(tmp_path: Path) -> None:
    with open_run(tmp_path, 40, every=20) as run:
        with refuses("no_answers"):
            run.session.request_round(TAB)
        run.answer()
        run.session.request_round(TAB)
        run.until(lambda view: view["tuned_on"] == 1)
        answer_slowly(run, 5)
        run.session.request_round(TAB)
        run.until(lambda view: view["tuned_on"] == 6)
    assert list_rounds(run) == [1, 4, 6]


def test_a_round_that_is_asked_for_twice_comes_once(tmp_path: Path) -> None:
    with open_run(tmp_path, 40) as run:
        run.answer()
        run.learner.gate.clear()
        run.session.request_round(TAB)
        run.until(lambda view: view["round"] is not None)
        run.session.request_round(TAB)
        run.learner.gate.set()
        run.until(lambda view: view["tuned_on"] == 1)
        run.answer()
        run.until_idle()
    assert list_rounds(run) == [1]


def test_a_round_that_fails_leaves_the_model_before(tmp_path: Path) -> None:
    learner = FakeLearner(60, lambda image, answers: f"after {answers}")
    lost = RoundError("step 3: the loss is not finite", "loss", where="image-1.png", hint="try again", images=[1])
    short = RoundError("not enough memory for a round: 7.9 GiB", "memory", hint="use a smaller image_size")
    learner.failures = [None, lost, short, LorgnetteError("odd"), None]
    with open_run(tmp_path, 60, learner=learner) as run:
        for _ in range(8):
            run.answer()
            run.until_idle()
        view = run.until(lambda view: view["notice"]["kind"] == "failed")
        text = "Round 2 did not finish: step 3: the loss is not finite. The model of round 1 goes on."
        assert view["notice"] == {
            "kind": "failed",
            "text": text,
            "details": "try again",
            "images": [1],
            "action": "train",
        }
        assert (view["phase"], view["tuned_on"]) == ("ready", 4)
        run.answer()
        assert run.until_asked()["text"] == "after 4"
        run.session.request_round(TAB)
        view = run.until(lambda view: view["notice"]["kind"] == "memory")
        text = "Not enough memory for a round: 7.9 GiB. Use a smaller image_size. Your answers are safe."
        assert view["notice"]["text"] == text
        run.session.request_round(TAB)
        run.until(lambda view: "odd" in view["notice"]["text"])
        run.session.request_round(TAB)
        assert run.until(lambda view: view["tuned_on"] == 9)["notice"]["kind"] == "tuned"
        events = [event for kind in (RoundDone, RoundFailed) for event in list_events(run, kind)]
        assert [event.round for event in events] == [1, 5, 2, 3, 4]
        assert [event.kind for event in list_events(run, RoundFailed)] == ["loss", "memory", "other"]
        assert sorted(path.name for path in (run.folder / "rounds").iterdir()) == [
            f"{number:04}.json" for number in range(1, 6)
        ]


def test_a_failed_rounds_corrections_wait_for_the_next(tmp_path: Path) -> None:
    learner = FakeLearner(60, lambda image, answers: truth(image))
    learner.failures = [LorgnetteError("odd"), None]
    with open_run(tmp_path, 60, learner=learner) as run:
        for count in range(1, 9):
            run.answer("a correction" if count == 1 else None)
            run.until_idle()
    assert list_rounds(run) == [4, 8]


def test_an_adapter_that_cannot_be_saved_is_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_run(tmp_path, 30, learner=FakeLearner(30, lambda image, answers: f"after {answers}")) as run:
        for _ in range(4):
            run.answer()
        run.until(lambda view: view["tuned_on"] == 4)

        def fail(folder: Path) -> None:
            raise LorgnetteError("cannot write: No space left on device", where=str(folder), hint="free some space")

        monkeypatch.setattr(run.learner, "save", fail)
        run.session.undo(TAB)  # a round over 3 answers
        run.session.request_round(TAB)
        view = run.until(lambda view: view["notice"]["kind"] == "failed")
        assert view["notice"]["text"].endswith("The model of round 1 goes on.")
        assert run.learner.tuned_on == 4  # read again


@pytest.mark.parametrize("where", ["open", "suggest", "train"])
def test_a_defect_of_the_model_leaves_the_answers(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    learner, defect = FakeLearner(20), ZeroDivisionError("a defect")
    learner.open_error = defect if where == "open" else None
    learner.failures = [defect]
    if where == "suggest":
        learner.suggest_error = lambda images: defect if 5 in images else None
    with open_run(tmp_path, 20, learner=learner) as run:
        if where == "train":
            for _ in range(4):
                run.answer()
        view = run.until(lambda view: view["phase"] == "failed")
        assert "ZeroDivisionError: a defect" in view["notice"]["text"]
        assert learner.is_closed
        for _ in range(3):
            current = run.session.view(TAB)["current"]
            run.session.answer(TAB, current["id"], "by hand", 7, 1.0)
        assert run.session.view(TAB)["current"]["state"] == ("no_model" if where != "train" else "ready")
        with refuses("no_model"):
            run.session.request_round(TAB)
        run.session.finish(TAB)
        assert run.session.view(TAB)["phase"] == "finished"
        run.session.answer(TAB, run.session.view(TAB)["current"]["id"], "more", 4, 1.0)
        assert run.session.view(TAB)["phase"] == "failed"
    assert len(read_captions(run.folder)) == 4 + 4 * (where == "train")
    assert "Traceback" in capsys.readouterr().err


def test_a_model_that_cannot_be_opened_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learner = FakeLearner(6)
    learner.open_error = LorgnetteError("weights are cut off", where="model", hint="get them again")
    with open_run(tmp_path, 6, learner=learner) as run:
        view = run.until(lambda view: view["phase"] == "failed")
    assert view["notice"]["text"].startswith("The model has stopped: weights are cut off.")
    assert view["notice"]["details"] == "model · get them again"
    assert capsys.readouterr().err == ""


def test_one_image_without_a_suggestion_does_not_stop_the_others(tmp_path: Path) -> None:
    learner = FakeLearner(12)
    learner.suggest_error = lambda images: LorgnetteError("too large") if 5 in images else None
    with open_run(tmp_path, 12, learner=learner) as run:
        states = {}
        for _ in range(12):
            view = run.until(lambda view: view["current"]["state"] in ("ready", "no_model"))
            current = view["current"]
            states[current["image"]] = current["state"]
            run.session.answer(TAB, current["id"], truth(current["image"]), 1, 1.0)
        assert states == {image: "no_model" if image == 5 else "ready" for image in range(12)}
        assert run.session.view(TAB)["current"] is None
        assert [event.counts for event in list_events(run, Answered)].count(False) == 1


def test_answers_while_the_model_is_read(tmp_path: Path) -> None:
    learner = FakeLearner(12)
    learner.open_gate.clear()
    with open_run(tmp_path, 12, learner=learner) as run:
        view = run.until(lambda view: view["progress"] is not None and view["progress"]["total"] == 12)
        assert (view["phase"], view["progress"]["text"]) == ("loading", "Reading the images")
        assert (view["current"]["state"], view["current"]["text"]) == ("no_model", None)
        with refuses("loading"):
            run.session.finish(TAB)
        run.session.answer(TAB, view["current"]["id"], "early", 5, 2.0)
        second = run.session.view(TAB)["current"]
        run.session.draft(TAB, second["id"], "half a sen")
        learner.open_gate.set()
        view = run.until(lambda view: view["phase"] == "ready")
        time.sleep(0.1)
        view = run.session.view(TAB)  # what the person has begun is not replaced
        assert (view["current"]["state"], view["current"]["draft"]) == ("no_model", "half a sen")
        run.session.answer(TAB, second["id"], "half a sentence", 5, 2.0)
        run.answer("later")
        assert [event.counts for event in list_events(run, Answered)] == [False, False, True]
        first = list_events(run, Suggested)[0]
        assert (first.text, first.round) == (None, None)


def test_a_slow_suggestion_grows_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_STREAM_SECONDS", 0.02)
    learner = FakeLearner(1)
    learner.growth, learner.pace = [f"a slow text {count}" for count in range(500)], 0.03
    with open_run(tmp_path, 1, learner=learner) as run:
        view = run.until(lambda view: view["current"]["state"] == "streaming")
        assert view["current"]["text"].startswith("a slow text")
        assert [event.text for event in list_events(run, Suggested)] == [None]
        run.session.stop_text(TAB, view["current"]["id"])
        view = run.session.view(TAB)
        kept = view["current"]["text"]
        assert view["current"]["state"] == "ready"
        assert [event.text for event in list_events(run, Suggested)] == [None, kept]
        run.session.stop_text(TAB, view["current"]["id"])
        time.sleep(0.15)
        assert run.session.view(TAB)["current"]["text"] == kept
        run.session.answer(TAB, view["current"]["id"], "mine", 4, 1.0)
        assert list_events(run, Answered)[0].counts
        with refuses("stale"):
            run.session.stop_text(TAB, view["current"]["id"])


def test_an_answer_while_a_suggestion_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_STREAM_SECONDS", 0.02)
    learner = FakeLearner(2)
    learner.growth, learner.pace = ["slow"] * 300, 0.03
    with open_run(tmp_path, 2, learner=learner) as run:
        view = run.until(lambda view: view["current"]["state"] == "streaming")
        run.session.answer(TAB, view["current"]["id"], "mine", 4, 1.0)
        kinds = [(type(event).__name__, event.text) for event in read_events(run.folder / "journal.jsonl")[1:5]]
        assert kinds[:3] == [("Suggested", None), ("Suggested", "slow"), ("Answered", "mine")]


def test_a_suggestion_that_was_cut_off_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The person goes back while it grows: what there is of it is no suggestion."""
    monkeypatch.setattr(session, "_STREAM_SECONDS", 0.02)
    learner = FakeLearner(2)
    learner.open_gate.clear()
    learner.growth, learner.pace = ["cut"] * 100, 0.03
    with open_run(tmp_path, 2, learner=learner) as run:
        first = run.session.view(TAB)["current"]["id"]
        run.session.answer(TAB, first, "early", 1, 1.0)
        learner.open_gate.set()
        second = run.until(lambda view: view["current"]["state"] == "streaming")["current"]["id"]
        run.session.undo(TAB)
        assert run.until_idle()["current"]["id"] == first
        learner.growth = []
        run.session.answer(TAB, first, "early", 1, 1.0)
        assert run.until_asked()["id"] == second
        assert [event.text for event in list_events(run, Suggested)] == [None, None, "an image"]


def test_a_key_before_any_text_keeps_the_field_empty(tmp_path: Path) -> None:
    learner = FakeLearner(1)
    learner.suggest_gate.clear()
    with open_run(tmp_path, 1, learner=learner) as run:
        current = run.until(lambda view: view["current"]["state"] == "waiting")["current"]
        run.session.stop_text(TAB, current["id"])
        learner.suggest_gate.set()
        time.sleep(0.1)
        assert run.session.view(TAB)["current"]["state"] == "no_model"
        assert [event.text for event in list_events(run, Suggested)] == [None]


def test_a_restart_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with open_run(tmp_path, 30) as run:
        names = answer_slowly(run, 9)
        before = run.until_asked()
    with open_run(tmp_path, 30) as again:
        view = again.until(lambda view: view["phase"] == "ready")
        assert (view["current"]["id"], view["current"]["text"]) == (before["id"], before["text"])
        assert (view["tuned_on"], again.learner.tuned_on) == (8, 8)  # its adapter was read
        assert [entry["name"] for entry in view["history"]] == names[:0:-1]
        assert view["score"]["counted"] == 9
        again.answer()
        assert again.until_asked()["number"] == 11
        assert again.learner.rounds == []
        assert len(list_events(again, Opened)) == 2


def test_a_kill_between_two_of_the_first_images_does_not_change_their_order(tmp_path: Path) -> None:
    """An answer is on the disk and the next image is not: it is chosen by features again, so it waits for them."""
    with open_run(tmp_path, 20) as run:
        names = answer_slowly(run, 4)
    path = run.folder / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    [first, *_] = [index for index, line in enumerate(lines) if '"answered"' in line]
    path.write_text("".join(lines[: first + 1]))
    learner = FakeLearner(20)
    learner.open_gate.clear()
    with open_run(tmp_path, 20, learner=learner) as again:
        assert again.session.view(TAB)["current"] is None
        learner.open_gate.set()
        assert answer_slowly(again, 3) == names[1:]


@pytest.mark.parametrize("loss", ["folder", "begun"])
def test_a_lost_adapter_is_made_again_first(tmp_path: Path, loss: str) -> None:
    with open_run(tmp_path, 30) as run:
        answer_slowly(run, 8)
        events = read_events(run.folder / "journal.jsonl")
    if loss == "folder":
        shutil.rmtree(run.folder / "adapter")
    else:  # killed in the round
        end = max(index for index, event in enumerate(events) if isinstance(event, RoundBegun))
        lines = (run.folder / "journal.jsonl").read_text().splitlines(keepends=True)
        (run.folder / "journal.jsonl").write_text("".join(lines[: end + 1]))
    with open_run(tmp_path, 30) as again:
        assert again.until(lambda view: view["tuned_on"] == 8)["round"] is None
        again.until(lambda view: len(again.learner.asked) > 0)
        assert all(tuned for _, tuned in again.learner.asked)
    assert list_rounds(again) == [8]


def test_images_that_change_or_vanish_are_named(tmp_path: Path) -> None:
    with open_run(tmp_path, 12) as run:
        asked = [run.answer() for _ in range(5)]
    gone, changed = asked[0]["name"], asked[2]["name"]
    (tmp_path / "images" / gone).unlink()
    PIL.Image.new("RGB", (30, 30), "white").save(tmp_path / "images" / changed)
    (tmp_path / "images" / "new.png").write_bytes((tmp_path / "images" / changed).read_bytes() + b"x")
    with open_run(tmp_path, learner=FakeLearner(12)) as again:
        assert again.session.remarks == [
            f"{gone} cannot be found, and has an answer that is not used",
            f"changed since the answer was given: {changed}",
        ]
        again.until_asked()
        assert list(read_captions(again.folder)) == [current["name"] for current in asked[1:]]
        again.session.request_round(TAB)
        again.until(lambda view: len(again.learner.rounds) > 0 and view["round"] is None)
        assert again.session.view(TAB)["counts"] == {"answered": 4, "skipped": 0, "left": 8, "total": 12}
    # The numbers of the images have changed, and the answers are still theirs.
    names = again.images.names
    assert [(names[answer.image], answer.text) for answer in again.learner.rounds[-1]] == [
        (current["name"], truth(current["image"])) for current in asked[1:]
    ]


ODD_TEXTS = ['a "red", car', "two\nlines", "two\r\nlines again", "猫が寝ている", "قطة نائمة", "e\u0301te\u0301", "=1+1",
             "tab\tand bell\x07", "sep=;", ",", '"', "ab\u2028cd", "👩‍👩‍👧 family", "image_path"]  # fmt: skip
ODD_NAMES = ['a "quoted", name.png', "two\nlines.png", "猫.png", "été 🎈.png", "-rf.png", "a;b|c.png", "#50%.png"]


def test_captions_hold_any_text_and_any_name(tmp_path: Path) -> None:
    write_images(tmp_path / "images", len(ODD_TEXTS))
    for number, name in enumerate(ODD_NAMES):
        (tmp_path / "images" / f"image-{number}.png").rename(tmp_path / "images" / name)
    with open_run(tmp_path, learner=FakeLearner(len(ODD_TEXTS))) as run:
        asked = {run.answer(text)["name"]: text for text in ODD_TEXTS}
        captions = read_captions(run.folder)
    assert list(captions) == list(asked)
    cleaned = {"two\r\nlines again": "two\nlines again", "e\u0301te\u0301": "été", "tab\tand bell\x07": "tab\tand bell",
               "ab\u2028cd": "ab\ncd"}  # fmt: skip
    assert captions == {name: cleaned.get(text, text) for name, text in asked.items()}


def test_captions_are_whole_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that never stops sees whole tables only, and never fewer answers than before."""
    with open_run(tmp_path, 30) as run:
        counts, stop = [0], threading.Event()

        def read() -> None:
            while not stop.is_set():
                content = (run.folder / "captions.csv").read_bytes()
                assert content.endswith(b"\r\n")
                counts.append(content.count(b"\r\n") - 1)

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(16):
            run.answer()
        stop.set()
        reader.join()
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert len(read_captions(run.folder)) == 16
    assert not list(run.folder.glob(".captions*"))


def test_labels(tmp_path: Path) -> None:
    learner = FakeLearner(12, lambda image, answers: " Cat. " if image % 2 else "a duck")
    with open_run(tmp_path, 12, learner=learner, labels=("dog", "cat")) as run:
        current = run.until_asked()
        for text in ("duck", "catt"):
            with refuses("no_answer") as caught:
                run.session.answer(TAB, current["id"], text, 1, 1.0)
            assert caught.value.message == "The answer is none of the labels. Choose one: dog, cat."
        for _ in range(12):
            current = run.answer("CAT" if current["image"] % 2 else "dog")
            assert current["text"] == ("cat" if current["image"] % 2 else "a duck")
        assert set(read_captions(run.folder).values()) == {"cat", "dog"}
        assert run.session.view(TAB)["labels"] == ["dog", "cat"]
        taken = compute_score(read_events(run.folder / "journal.jsonl")).taken
        assert any(taken)  # "Cat." is the label


def ask_untuned(run: Run) -> dict[str, Any]:
    """Ask what the untuned model says of the current image. Returns the current image before."""
    current = run.until_asked()
    run.session.request_untuned(TAB, current["id"])
    return current


def test_what_the_untuned_model_says_is_shown_on_request(tmp_path: Path) -> None:
    """It changes no suggestion, and is made once, also over a restart. An answer after it counts, and is told."""
    with open_run(tmp_path, 20) as run:
        first = ask_untuned(run)
        assert first["untuned"] == first["text"] == "an image"  # the suggestion itself is the untuned model's
        answer_slowly(run, 10)
        assert list_events(run, UntunedShown) == []
        before = ask_untuned(run)
        assert (before["text"], before["untuned"]) == (truth(before["image"]), None)
        after = run.until(lambda view: view["current"]["untuned"] is not None)["current"]
        assert after == before | {"untuned": "an image"}
        assert run.learner.asked[-1] == ([before["image"]], False)
        num_asked, version = len(run.learner.asked), run.session.view(TAB)["version"]
        assert run.session.request_untuned(TAB, before["id"]) == version
        [event] = list_events(run, UntunedShown)
        assert (event.id, event.text) == (before["id"], "an image")
    with open_run(tmp_path, 20) as run:
        assert run.until_asked() == after
        assert run.session.request_untuned(TAB, before["id"]) == run.session.view(TAB)["version"]
        run.answer()
        run.until_idle()
        assert [job for job in run.learner.asked if not job[1]] == []
        assert run.until_asked()["untuned"] is None
        score = compute_score(read_events(run.folder / "journal.jsonl"))
        assert (score.num_untuned_shown, score.outcomes[-1].id, score.outcomes[-1].taken) == (1, before["id"], True)
    assert num_asked > 1


def test_what_the_untuned_model_says_comes_last(tmp_path: Path) -> None:
    """After a round, and after the suggestions for images to come."""
    with open_run(tmp_path, 30) as run:
        answer_slowly(run, 8)
        run.learner.gate.clear()
        for _ in range(8):
            current = run.answer("other")
        run.until(lambda view: view["round"] is not None)
        current = ask_untuned(run)
        num_asked = len(run.learner.asked)
        time.sleep(0.05)
        assert len(run.learner.asked) == num_asked
        run.learner.gate.set()
        run.until(lambda view: view["current"]["untuned"] is not None)
        later = run.learner.asked[num_asked:]
        assert [tuned for _, tuned in later] == [True, False]  # new suggestions for the queue, then this
        assert later[-1] == ([current["image"]], False)


def test_what_the_untuned_model_says_after_the_answer_is_dropped(tmp_path: Path) -> None:
    """Nobody has seen it."""
    with open_run(tmp_path, 20) as run:
        answer_slowly(run, 10)
        run.learner.suggest_gate.clear()
        current = ask_untuned(run)
        deadline = time.monotonic() + 10
        while run.learner.asked[-1] != ([current["image"]], False):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        run.answer()
        run.learner.suggest_gate.set()
        assert run.until_idle()["current"]["untuned"] is None
        assert list_events(run, UntunedShown) == []
        ask_untuned(run)  # for the next one it is made
        run.until(lambda view: view["current"]["untuned"] is not None)


def test_an_untuned_model_that_fails_takes_no_suggestion_away(tmp_path: Path) -> None:
    with open_run(tmp_path, 20) as run:
        answer_slowly(run, 10)
        run.learner.suggest_error = lambda images: LorgnetteError("too large", hint="smaller")
        current = ask_untuned(run)
        view = run.until(lambda view: "too large" in (view["notice"] or {}).get("text", ""))
        assert view["notice"]["text"].startswith("No answer of the untuned model for ")
        assert view["current"] == current
        run.learner.suggest_error = lambda images: None
        ask_untuned(run)
        run.until(lambda view: view["current"]["untuned"] is not None)


def test_what_the_untuned_model_says_is_on_the_disk_before_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_RETRY_SECONDS", 0.02)
    append, is_full = journal.Journal.append, True

    def refuse(self: journal.Journal, *events: Event) -> None:
        if is_full and any(isinstance(event, UntunedShown) for event in events):
            raise LorgnetteError("No space left on device")
        append(self, *events)

    monkeypatch.setattr(journal.Journal, "append", refuse)
    with open_run(tmp_path, 20) as run:
        answer_slowly(run, 10)
        ask_untuned(run)
        view = run.until(lambda view: "No space left" in (view["notice"] or {}).get("text", ""))
        assert view["current"]["untuned"] is None
        is_full = False
        run.until(lambda view: view["current"]["untuned"] == "an image")


def test_the_untuned_model_is_not_asked_where_it_would_spoil_a_comparison(tmp_path: Path) -> None:
    with open_run(tmp_path, 20, blind=2) as run:
        run.answer()
        current = run.until(lambda view: view["current"]["state"] == "blind")["current"]
        with refuses("blind"):
            run.session.request_untuned(TAB, current["id"])
        with refuses("stale"):
            run.session.request_untuned(TAB, "s1")
        with refuses("other_tab"):
            run.session.request_untuned("second", current["id"])
        assert current["untuned"] is None
        assert run.until_idle()["current"]["untuned"] is None


def test_blind_images_have_no_suggestion_to_see(tmp_path: Path) -> None:
    with open_run(tmp_path, 12, blind=3) as run:
        states = []
        for _ in range(12):
            view = run.until(lambda view: view["current"]["state"] in ("ready", "blind"))
            current = view["current"]
            states.append(current["state"])
            assert (current["text"] is None) == (current["state"] == "blind")
            run.session.answer(TAB, current["id"], truth(current["image"]), 1, 1.0)
        assert states == ["ready", "ready", "blind"] * 4
        blind = {event.id: event for event in list_events(run, Suggested) if event.blind and event.text is not None}
        assert len(blind) == 4
        assert [event.counts for event in list_events(run, Answered)] == [True, True, False] * 4


def test_a_look_alike_gets_the_answer_of_the_first(tmp_path: Path) -> None:
    images = open_images(tmp_path / "images", 12)
    images.alike = {number: 2 for number in (7, 9)}
    with open_run(tmp_path, 12, images=images) as run:
        alike = []
        for _ in range(12):
            current = run.answer()
            if current["alike"] is not None:
                alike.append((current["text"], current["round"]))
        group = [current for current in list_events(run, Suggested) if current.alike]
        assert len(alike) == 2
        first = next(
            event for event in list_events(run, Suggested) if event.image in {images.names[i] for i in (2, 7, 9)}
        )
        assert {event.alike for event in group} <= {images.names[i] for i in (2, 7, 9)}
        assert group[0].alike == first.image
        assert group[0].text == truth(images.names.index(first.image))
        answers = {event.id: event.counts for event in list_events(run, Answered)}
        assert [answers[event.id] for event in group] == [False, False]


def test_broken_images_can_only_be_skipped(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 6)
    path = tmp_path / "images" / "image-2.png"
    path.write_bytes(path.read_bytes()[:40])
    learner = FakeLearner(6)
    learner.broken = {4: LorgnetteError("its pixels are odd")}
    learner.open_gate.clear()
    with open_run(tmp_path, 6, learner=learner) as run:
        learner.open_gate.set()
        run.until(lambda view: view["phase"] == "ready")
        problems = {}
        for _ in range(6):
            view = run.until(lambda view: view["current"]["state"] in ("ready", "broken"))
            current = view["current"]
            if current["state"] == "ready":
                run.session.answer(TAB, current["id"], "fine", 1, 1.0)
                continue
            problems[current["image"]] = current["problem"]
            with refuses("broken"):
                run.session.answer(TAB, current["id"], "what?", 1, 1.0)
            run.session.skip(TAB, current["id"])
        assert set(problems) == {2, 4}
        assert problems[4] == "its pixels are odd"
        reasons = [event.reason for event in list_events(run, session.Skipped)]
        assert sorted(reasons) == sorted(f"broken: {problem}" for problem in problems.values())
        run.session.finish(TAB)
        run.until(lambda view: view["phase"] == "finished")
    assert all(not {2, 4} & set(images) for images, _ in learner.asked)


def test_a_review(tmp_path: Path) -> None:
    with open_run(tmp_path, 8) as run:
        answered = {run.answer()["image"] for _ in range(6)}
        open_id = run.until_asked()["id"]
    with open_run(tmp_path, 8, reviewer="Zoë") as review:
        review.until(lambda view: view["phase"] == "ready")
        seen, changed = [], None
        for count in range(4):
            current = review.until_asked()
            assert (current["text"], current["is_review"]) == (truth(current["image"]), True)
            assert current["id"] != open_id
            seen.append(current["image"])
            if count == 1:
                changed = current
            text = "better" if count == 1 else current["text"]
            review.session.answer(TAB, current["id"], text, 1, 1.0)
        assert review.session.view(TAB)["counts"] == {"answered": 4, "skipped": 0, "left": 2, "total": 6}
        assert changed is not None
        assert read_captions(review.folder)[changed["name"]] == "better"
        history = review.session.view(TAB)["history"]
        assert [(entry["text"], entry["suggestion"]) for entry in history][2] == ("better", truth(changed["image"]))
        for _ in range(3):
            review.session.undo(TAB)
        assert read_captions(review.folder)[changed["name"]] == truth(changed["image"])
        for _ in range(3):
            current = review.until_asked()
            better = current["image"] == changed["image"]
            review.session.answer(TAB, current["id"], "better" if better else current["text"], 1, 1.0)
    with open_run(tmp_path, 8, reviewer="Zoë") as review:  # goes on
        for _ in range(2):
            current = review.until_asked()
            seen.append(current["image"])
            review.session.answer(TAB, current["id"], current["text"], 1, 1.0)
        assert review.session.view(TAB)["current"] is None
        assert set(seen) == answered
        review.until(lambda view: view["phase"] == "ready")
        review.session.finish(TAB)
        review.until(lambda view: view["phase"] == "finished")
        assert "better" in [answer.text for answer in review.learner.rounds[-1]]
        [agreement] = compute_score(read_events(review.folder / "journal.jsonl")).agreements
        assert (agreement.reviewer, agreement.equal.taken, agreement.equal.count) == ("Zoë", 5, 6)
    with open_run(tmp_path, 8) as run:
        assert run.until_asked()["id"] == open_id


def test_answers_from_before_are_trained_on_first(tmp_path: Path) -> None:
    given = {f"image-{number}.png": f" given {number} " for number in range(5)} | {"other.png": "elsewhere"}
    with open_run(tmp_path, 12, given=given) as run:
        current = run.until_asked()
        assert current["number"] == 1
        assert (current["round"], run.session.view(TAB)["tuned_on"]) == (1, 5)
        assert run.session.view(TAB)["history"] == []
        with refuses("nothing"):
            run.session.undo(TAB)
        run.answer("mine")
        assert list(read_captions(run.folder).values()) == [*(f"given {number}" for number in range(5)), "mine"]
        assert run.session.view(TAB)["score"]["counted"] == 1
    with open_run(tmp_path, 12, given=given) as again:
        again.until_asked()
        assert len(list_events(again, Answered)) == 6
    with (
        pytest.raises(LorgnetteError, match="none of the labels"),
        open_run(tmp_path / "other", 12, given=given, labels=("cat",)),
    ):
        pass


def test_hardest_first_counts_the_shuffled_half(tmp_path: Path) -> None:
    with open_run(tmp_path, 30, order="hardest") as run:
        picks = []
        for _ in range(20):
            run.answer()
            run.until_idle()
        events = {event.id: event for event in list_events(run, Suggested) if event.text is not None}
        for answered in list_events(run, Answered):
            pick = events[answered.id].pick
            picks.append(pick)
            assert answered.counts == (pick != "hardest")
    assert picks[4:] == ["shuffled", "hardest"] * 8


def test_a_state_is_sent_at_once(tmp_path: Path) -> None:
    with open_run(tmp_path, 6) as run:
        current = run.until_asked()
        run.until_idle()
        version, woken = run.session.view(TAB)["version"], []

        def wait() -> None:
            run.session.wait_for_change(version, 20)
            woken.append(time.monotonic())

        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.1)
        assert not woken
        start = time.monotonic()
        run.session.answer(TAB, current["id"], "x", 1, 1.0)
        waiter.join(5)
        assert woken[0] - start < 3  # of 20; the machine may be busy
        assert run.session.wait_for_change(10**9, 0.05) < 10**9  # no longer than asked
        closer = threading.Timer(0.1, run.session.close)
        closer.start()
        start = time.monotonic()
        run.session.wait_for_change(10**9, 20)
        assert time.monotonic() - start < 5
        closer.join()


def test_a_clock_that_jumps_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.count(2_000_000_000, -1000)
    clock = SimpleNamespace(time=lambda: float(next(times)), monotonic=time.monotonic)
    monkeypatch.setattr("lorgnette.teaching.session.time", clock)
    with open_run(tmp_path, 20) as run:
        names = answer_slowly(run, 9)
    with open_run(tmp_path, 20) as again:
        again.until(lambda view: view["phase"] == "ready")
        assert list(read_captions(again.folder)) == names
        assert again.session.view(TAB)["tuned_on"] == 8


def test_enough_is_told(tmp_path: Path) -> None:
    with open_run(tmp_path, 60) as run:
        for _ in range(30):
            run.answer()
            view = run.until_idle()
            if view["notice"] and view["notice"]["kind"] == "enough":
                break
        assert view["notice"]["text"].startswith("Right 16 times in a row. Finish and let it caption the other")
        assert view["counts"]["left"] == int(view["notice"]["text"].split()[-1].rstrip("?"))


def test_other_labels_must_have_all_answers(tmp_path: Path) -> None:
    with open_run(tmp_path, 6, labels=("cat", "dog")) as run:
        run.session.answer(TAB, "s1", "cat", 0, 1.0)
    with (
        pytest.raises(LorgnetteError, match=r"1 of the run's answers are none of the labels: 'cat'"),
        open_run(tmp_path, 6, labels=("dog", "fox")),
    ):
        pass
    with open_run(tmp_path, 6, labels=("fox", "cat")) as run:
        assert run.session.view(TAB)["counts"]["answered"] == 1


def test_a_disk_that_has_room_again_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """captions.csv is written once it can be, though nothing else is done; then the notice goes."""
    monkeypatch.setattr(session, "_RETRY_SECONDS", 0.02)
    write_captions, is_full = run_record.write_captions, False

    def write(path: Path, rows: Any) -> None:
        if is_full:
            raise LorgnetteError("cannot write: No space left on device", where=str(path))
        write_captions(path, rows)

    monkeypatch.setattr(run_record, "write_captions", write)
    with open_run(tmp_path, 6) as run:
        run.answer("one")
        is_full = True
        run.answer("two")
        view = run.until(lambda view: view["notice"] is not None)
        assert (view["notice"]["text"], view["notice"]["action"]) == ("Cannot write: No space left on device.", "")
        assert list(read_captions(run.folder).values()) == ["one"]
        is_full = False
        run.until(lambda view: view["notice"] is None)
        assert list(read_captions(run.folder).values()) == ["one", "two"]
        # What went wrong at the end is told until the end is tried again.
        is_full = True
        run.session.finish(TAB)
        run.until(lambda view: view["phase"] == "finished" and view["notice"] is not None)
        is_full = False
        run.until(lambda view: view["notice"] is None)


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does a defect in it: the page leaves the end, and the person can go on."""
    faults: list[BaseException | None] = [
        LorgnetteError("cannot write: No space left on device"),
        ZeroDivisionError("x"),
    ]

    def write_report(events: object) -> None:
        if (fault := faults.pop(0) if faults else None) is not None:
            raise fault

    with open_run(tmp_path, 6, write_report=write_report) as run:
        run.answer()
        run.session.finish(TAB)
        view = run.until(lambda view: view["notice"] is not None and "No space" in view["notice"]["text"])
        assert (view["phase"], view["progress"]) == ("ready", None)
        run.session.finish(TAB)
        assert view["notice"]["action"] == ""
        view = run.until(lambda view: view["phase"] == "failed")
        assert "ZeroDivisionError" in view["notice"]["text"]
        run.session.answer(TAB, view["current"]["id"], "by hand", 1, 1.0)
        run.session.finish(TAB)
        assert run.session.view(TAB)["phase"] == "finished"
    assert "Traceback" in capsys.readouterr().err


def test_a_run_folder_that_is_taken_away_takes_no_answer(tmp_path: Path) -> None:
    with open_run(tmp_path, 6) as run:
        current = run.until_asked()
        run.folder.rename(tmp_path / "elsewhere")
        with refuses("disk"):
            run.session.answer(TAB, current["id"], "x", 1, 1.0)
        (tmp_path / "elsewhere").rename(run.folder)
        run.session.answer(TAB, current["id"], "x", 1, 1.0)
