"""`teach demo` in a real browser: a person corrects what it suggests by the keyboard alone, and it learns."""

import csv
import json
import random
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_pages import Opened, expect

from lorgnette.commands.demo import SEED
from lorgnette.demo.captions import write_caption
from lorgnette.demo.scenes import sample_scene

WORDS = ("teach", "demo", "device=cpu", "predict.max_new_tokens=24")
"""Before it has learned anything, the model writes long texts: they are cut."""
NUM_BEFORE, NUM_ANSWERS, WINDOW = 20, 40, 16
MILLISECONDS = 30_000
Event = dict[str, Any]


def write_truth() -> dict[str, str]:
    """Name of a drawn image → what a person writes who wants short captions."""
    drawn = random.Random(SEED)
    return {f"{number:04}.png": write_caption(sample_scene(drawn)) for number in range(1, 97)}


@pytest.fixture
def start(start_process: Callable[..., Any]) -> Iterator[Callable[[], tuple[Any, str]]]:
    """start() → the process, and the address of its page. None is left at the end."""
    processes = []

    def begin() -> tuple[Any, str]:
        process = start_process(*WORDS, "--port", 0)
        processes.append(process)
        lines = [process.stdout.readline()]
        while not lines[-1].startswith("page "):
            lines.append(process.stdout.readline())
            assert lines[-1], lines  # it has ended
        return process, lines[-1].split()[1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def read_journal(run: Path) -> list[Event]:
    """The events whose lines are whole."""
    text = (run / "journal.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class Person:
    """Answers with the captions of `truth`."""

    def __init__(self, page: Opened, run: Path) -> None:
        self.view, self.run, self.truth = page.view, run, write_truth()
        self.field = page.view.get_by_label("Caption")
        self.image = page.view.get_by_test_id("picture")
        self.summary = page.view.locator("#summary")
        self.taken: list[bool] = []

    @property
    def name(self) -> str:
        return str(self.image.get_attribute("alt"))

    def wait(self) -> None:
        """Until the suggestion for the next image is there."""
        expect(self.summary).to_contain_text(f"{len(self.taken)} of 96", timeout=MILLISECONDS)
        expect(self.view.locator("#source")).to_contain_text("uned", timeout=MILLISECONDS)  # Untuned, Tuned
        expect(self.field).to_have_js_property("readOnly", value=False)
        expect(self.field).to_be_focused()

    def answer(self) -> None:
        self.wait()
        suggestion, text = self.field.input_value(), self.truth[self.name]
        self.taken.append(suggestion == text)
        if len(self.taken) == 1:
            self.view.keyboard.type(text)  # it replaces what is selected
        elif suggestion != text:
            self.view.keyboard.press("Control+A")
            self.view.keyboard.insert_text(text)
        expect(self.field).to_have_value(text)
        self.view.keyboard.press("Enter")
        expect(self.summary).to_contain_text(f"{len(self.taken)} of 96")
        number = len(self.taken)
        if (number == 4 or number % 8 == 0) and not all(self.taken[-8 if number > 8 else -4 :]):
            self.wait_for_round(number)

    def wait_for_round(self, number: int) -> None:
        """Until a round over this many answers is done: what the model knows then does not depend on the machine."""
        deadline = time.monotonic() + MILLISECONDS / 1000
        while ("round_done", number) not in [
            (event["event"], event.get("answers")) for event in read_journal(self.run)
        ]:
            assert time.monotonic() < deadline, f"no round over {number} answers"
            self.view.wait_for_timeout(50)


def count_taken(events: list[Event]) -> list[bool]:
    """Of the answers that count, in order: is it the text that stood there?"""
    suggested, taken = dict[str, Event](), dict[str, bool]()
    for event in events:
        if event["event"] == "suggested":
            suggested[event["id"]] = event
        elif event["event"] == "answered":
            first = suggested[event["id"]]  # it was in the journal before
            texts = [unicodedata.normalize("NFC", each["text"]).strip() for each in (event, first)]
            if event["counts"]:
                taken[event["id"]] = texts[0] == texts[1]
    return list(taken.values())


def test_a_person_teaches_the_demo(
    start: Callable[[], tuple[Any, str]],
    opened: Callable[..., Opened],
    lorgnette: Callable[..., Any],
    tmp_path: Path,
) -> None:
    run = tmp_path / "runs" / "teach-demo"
    process, address = start()
    with opened(address) as page:
        requests = list(page.requests)
        page.context.on("request", lambda request: requests.append(request.url))
        person = Person(page, run)
        for _ in range(NUM_BEFORE):
            person.answer()
        person.wait()
        shown = person.name
        process.kill()
        process.communicate()

        # Nothing is lost. The words that were not sent stay, also in a page that is opened anew.
        origins = [address.partition("?")[0]]
        process, address = start()
        origins.append(address.partition("?")[0])
        page.view.goto(address)
        person.wait()
        assert person.name == shown
        person.view.keyboard.press("Control+A")
        person.view.keyboard.insert_text("A draft")
        page.view.reload()
        person.wait()
        expect(person.field).to_have_value("A draft")

        # The newest tab has the run.
        second = page.context.new_page()
        second.goto(address)
        expect(second.get_by_test_id("picture")).to_have_attribute("alt", shown)
        expect(page.view.locator("#message-text")).to_have_text("Open in another tab.")
        expect(person.field).to_have_js_property("readOnly", value=True)
        second.close()
        page.view.get_by_role("button", name="Use it here").press("Enter")
        expect(person.field).to_have_js_property("readOnly", value=False)
        person.field.focus()

        for _ in range(NUM_ANSWERS - NUM_BEFORE):
            person.answer()
        person.wait()
        assert sum(person.taken[:4]) <= 1  # untuned
        assert sum(person.taken[8:]) >= 14, person.taken
        taken = count_taken(read_journal(run))
        assert sum(taken) >= 14
        score = page.view.locator("#score")
        expect(score).to_contain_text(f"{sum(taken[-WINDOW:])} of the last {WINDOW}")

        # A suggestion that was made after the last round is what `predict` says.
        person.view.keyboard.press("Alt+s")
        expect(person.summary).to_contain_text("1 skipped")
        person.wait()
        last, suggestion = person.name, person.field.input_value()
        page.view.get_by_role("button", name="Finish", exact=True).press("Enter")
        expect(page.view.get_by_role("heading", name="Finished")).to_be_visible(timeout=MILLISECONDS)
        assert [url for url in requests if not url.startswith((*origins, "blob:", "about:"))] == []
    process.terminate()
    process.communicate()

    with (run / "captions.csv").open(encoding="utf-8", newline="") as file:
        captions = {Path(row["image_path"]).name: row["caption"] for row in csv.DictReader(file)}
    assert len(captions) == NUM_ANSWERS
    assert captions == {name: person.truth[name] for name in captions}
    done = lorgnette("check", run / "captions.csv", "model=demo")
    assert done.returncode == 0, done.stdout + done.stderr
    image = next((run / "images").rglob(last))
    done = lorgnette("predict", image, "--adapter", run, "--out", "answers.jsonl", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "answers.jsonl").read_text())["tuned"] == suggestion
