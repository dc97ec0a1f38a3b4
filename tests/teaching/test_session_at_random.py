"""Whatever a person does, and whatever fails meanwhile: the journal is the whole truth, and nothing gets stuck."""

import csv
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from taught_run import TAB, FakeLearner, Run, open_run, truth

from lorgnette.errors import LorgnetteError
from lorgnette.server.api_errors import ApiError
from lorgnette.teaching.events import Answered, Suggested, UntunedShown
from lorgnette.teaching.journal import read_events
from lorgnette.teaching.learner import RoundError
from lorgnette.teaching.run_state import RunState
from lorgnette.teaching.score import compute_score

NUM_IMAGES = 24


class MoodyLearner(FakeLearner):
    """Some of its rounds and suggestions fail."""

    def __init__(self, seed: int) -> None:
        super().__init__(NUM_IMAGES)
        draw = random.Random(seed)
        faults = [LorgnetteError("odd"), RoundError("the loss is not finite", "loss", images=[1]), None, None, None]
        self.failures = [draw.choice(faults) for _ in range(100)]
        self.suggest_error = lambda images: LorgnetteError("too large") if draw.random() < 0.1 else None
        self.growth, self.pace = ["a", "a b"], 0.0005


def act(run: Run, draw: random.Random) -> None:
    """One action at random; some of them are refused."""
    session, view = run.session, run.session.view(TAB)
    current, history = view["current"], view["history"]
    id = current["id"] if current and draw.random() < 0.9 else f"s{draw.randrange(30)}"
    text = (
        truth(current["image"])
        if current and draw.random() < 0.7
        else draw.choice(["", "other", " a\r\nb ", "x" * 30_000])
    )
    tab = TAB if draw.random() < 0.95 else "second"
    actions: list[Any] = [
        *[lambda: session.answer(tab, id, text, 1, draw.random())] * 12,
        lambda: session.skip(tab, id),
        lambda: session.undo(tab),
        lambda: session.draft(tab, id, text),
        lambda: session.stop_text(tab, id),
        lambda: session.request_untuned(tab, id),
        lambda: session.request_round(tab),
        lambda: session.finish(tab),
        lambda: session.claim(TAB),
        lambda: session.mend(tab, draw.choice(history)["id"] if history else id, text),
        lambda: time.sleep(0.005),
    ]
    with suppress(ApiError):
        draw.choice(actions)()


@contextmanager
def watch(run: Run) -> Iterator[None]:
    """A second tab asks for the state all the time."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.0005):
            run.session.view("second")

    watcher = threading.Thread(target=ask)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def check(run: Run) -> None:
    """The journal, the state in memory and the files say the same."""
    with run.session._changed:
        compare(run)


def compare(run: Run) -> None:
    events = read_events(run.folder / "journal.jsonl")
    state = RunState(events)
    assert vars(state) == vars(run.session._state)
    with (run.folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = [(Path(image).name, text) for image, text in list(csv.reader(file))[1:]]
    assert rows == state.list_answers()
    seen: dict[str, Suggested] = {}
    for event in events:
        if isinstance(event, Suggested):
            before = seen.get(event.id)
            assert before is None or (before.image, before.text) == (event.image, None)  # a text comes once
            seen[event.id] = event
        elif isinstance(event, UntunedShown):
            assert not seen[event.id].blind
        elif isinstance(event, Answered):
            assert not event.counts or seen[event.id].text is not None
    assert len(compute_score(events).outcomes) == sum(isinstance(event, Answered) and event.counts for event in events)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_person_does(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    for start in range(3):
        reviewer = "Zoë" if seed % 3 == 2 and start == 2 else None
        with open_run(tmp_path, NUM_IMAGES, learner=MoodyLearner(seed), reviewer=reviewer, blind=5) as run:
            check(run)
            run.session.claim(TAB)
            with watch(run):
                for _ in range(80):
                    act(run, draw)
            run.session.claim(TAB)
            check(run)
            # Nothing is stuck: whatever there is to do comes to an end, and then a person can answer.
            view = run.until(lambda view: view["phase"] in ("ready", "finished") and view["round"] is None)
            while view["current"] is not None:
                view = run.until(lambda view: (view["current"] or {}).get("state") != "waiting")
                if view["current"] is None or draw.random() < 0.7:
                    break
                run.session.answer(TAB, view["current"]["id"], "last", 1, 1.0)
                view = run.session.view(TAB)
            check(run)
