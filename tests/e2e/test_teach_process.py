"""`teach demo` in a process of its own: a person over HTTP, a kill, the end, and `predict` with the run."""

import csv
import json
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from taught_browser import Browser

from lorgnette.commands.demo import SEED
from lorgnette.demo.captions import write_caption
from lorgnette.demo.scenes import sample_scene
from lorgnette.report.run_dir import RunDir
from lorgnette.teaching.events import Answered, RoundDone, Suggested
from lorgnette.teaching.journal import read_events

WORDS = ("teach", "demo", "--port", 0, "device=cpu", "predict.max_new_tokens=24")
"""Before it has learned anything, the model writes long texts: they are cut."""
NUM_BEFORE, NUM_ANSWERS = 4, 10
Start = Callable[..., "subprocess.Popen[str]"]


def write_truth() -> dict[str, str]:
    """Name of a drawn image → what a person writes who wants short captions."""
    rng = random.Random(SEED)
    return {f"{number:04}.png": write_caption(sample_scene(rng)) for number in range(1, 97)}


TRUTH = write_truth()


@pytest.fixture
def start(start_process: Start) -> Iterator[Start]:
    """start(word, …) → a process. None is left at the end."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*words: object) -> "subprocess.Popen[str]":
        processes.append(start_process(*words))
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def open_page(process: "subprocess.Popen[str]") -> Browser:
    """The page whose address the process prints."""
    assert process.stdout is not None
    printed: dict[str, str] = {}
    while "ready" not in printed:
        line = process.stdout.readline()
        assert line, printed  # it has ended
        name, _, printed[name] = line.strip().partition(" ")
    return Browser(printed["page"].strip())


def answer(browser: Browser, num_answers: int) -> None:
    """Answer with the truth until there are `num_answers` answers."""
    while (state := browser.get_state())["counts"]["answered"] < num_answers:
        current = browser.wait_for_suggestion()
        text = TRUTH[current["name"]]
        browser.post("/answer", id=current["id"], text=text, keys=0 if current["text"] == text else 40, seconds=2.0)
        if state["round"] is None and num_answers > NUM_BEFORE:
            browser.wait_for(lambda state: state["round"] is None)


def list_answered(run: RunDir) -> list[str]:
    return [event.id for event in read_events(run.journal) if isinstance(event, Answered)]


def read_table(path: Path) -> dict[str, str]:
    """Image's name → text."""
    with path.open(encoding="utf-8", newline="") as file:
        return {Path(row["image_path"]).name: row["caption"] for row in csv.DictReader(file)}


def test_a_person_teaches_the_demo(start: Start, tmp_path: Path, lorgnette: Callable[..., Any]) -> None:
    run = RunDir(tmp_path / "runs" / "teach-demo")
    process = start(*WORDS)
    browser = open_page(process)
    answer(browser, NUM_BEFORE)
    shown = browser.get_state()["current"]
    process.kill()
    process.communicate()
    assert len(list_answered(run)) == NUM_BEFORE

    # The same command goes on with the same image.
    process = start(*WORDS)
    browser = open_page(process)
    state = browser.get_state()
    assert (state["counts"]["answered"], state["current"]["id"]) == (NUM_BEFORE, shown["id"])
    answer(browser, NUM_ANSWERS)
    browser.post("/finish")
    state = browser.wait_for(lambda state: state["phase"] == "finished")
    assert (state["counts"]["answered"], state["tuned_on"]) == (NUM_ANSWERS, NUM_ANSWERS)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert rest.splitlines()[-3:] == [
        f"saved      {NUM_ANSWERS} answers, runs/teach-demo/captions.csv", "to go on   lorgnette teach demo", "stopped",
    ]  # fmt: skip
    assert not run.lock_file.exists()

    # What it leaves.
    events = read_events(run.journal)
    assert [event.answers for event in events if isinstance(event, RoundDone)][-1] == NUM_ANSWERS
    first_places = {
        event.id: place for place, event in reversed(list(enumerate(events))) if isinstance(event, Suggested)
    }
    answered = {event.id: place for place, event in enumerate(events) if isinstance(event, Answered)}
    assert len(answered) == NUM_ANSWERS
    assert all(first_places[id] < place for id, place in answered.items())
    captions, suggestions = read_table(run.captions), read_table(run.suggestions)
    assert captions == {name: TRUTH[name] for name in captions}
    assert captions.keys() | suggestions.keys() == TRUTH.keys()
    assert (len(captions), len(suggestions)) == (NUM_ANSWERS, len(TRUTH) - NUM_ANSWERS)
    num_right = sum(text == TRUTH[name] for name, text in suggestions.items())
    assert num_right > len(suggestions) / 4, num_right  # 0 before the first round
    assert run.report.is_file()
    assert len(json.loads(run.manifest.read_text())["images"]) == NUM_ANSWERS

    # Other commands take the run.
    asked = sorted(suggestions)[:4]
    done = lorgnette(
        "predict", *(run.path / "images" / name for name in asked), "--adapter", run.path, "--out", "answers.jsonl",
        "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["tuned"] for row in rows] == [suggestions[name] for name in asked]

    # Plain transformers + PEFT take the adapter.
    done = lorgnette("verify", run.path, "--device", "cpu")
    assert done.stdout.endswith("result     all checks passed\n"), done.stdout + done.stderr
