"""A `teach` run with drawn images and a learner without a model: it suggests the right text after enough answers."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from lorgnette.errors import LorgnetteError
from lorgnette.report.run_dir import RunDir
from lorgnette.teaching.device_thread import DeviceThread
from lorgnette.teaching.images import ImageList, read_images
from lorgnette.teaching.journal import Journal
from lorgnette.teaching.learner import Answer, ModelSuggestion, RoundResult, RoundStopped
from lorgnette.teaching.session import Session, SessionOptions

TAB = "tab"
ENOUGH = 8
"""Answers after which the fake learner is right about every image."""


def write_images(folder: Path, num_images: int) -> None:
    """image-0.png, … of different colors."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_images):
        color = (number * 37 % 256, number * 91 % 256, number * 53 % 256)
        PIL.Image.new("RGB", (12 + number, 9), color).save(folder / f"image-{number}.png")


def truth(number: int) -> str:
    return f"the truth about {number}"


class FakeLearner:
    """tell: (image, answers of the last round) → the suggestion. failures: raised by the next rounds, None for a good
    one. gate: what `train` waits for; suggest_gate: what `suggest` waits for.
    """

    def __init__(self, num_images: int, tell: Callable[[int, int], str] | None = None) -> None:
        self.num_images = num_images
        self.tell = tell or (lambda image, answers: truth(image) if answers >= ENOUGH else "an image")
        self.feature_means = np.eye(num_images, dtype=np.float32)
        self.broken: dict[int, LorgnetteError] = {}
        self.rounds: list[list[Answer]] = []
        self.asked: list[tuple[list[int], bool]] = []
        self.failures: list[BaseException | None] = []
        self.open_error: BaseException | None = None
        self.suggest_error: Callable[[Sequence[int]], BaseException | None] = lambda images: None
        self.gate, self.suggest_gate, self.open_gate = threading.Event(), threading.Event(), threading.Event()
        for gate in (self.gate, self.suggest_gate, self.open_gate):
            gate.set()
        self.growth: list[str] = []  # texts that a suggestion for one image goes through
        self.pace = 0.0
        self.tuned_on = 0
        self.is_closed = False

    def open(self, on_progress: Callable[[int, int], None]) -> dict[int, LorgnetteError]:
        on_progress(0, self.num_images)
        self.open_gate.wait(20)
        on_progress(self.num_images, self.num_images)
        if self.open_error is not None:
            raise self.open_error
        return self.broken

    def suggest(
        self, images: Sequence[int], *, tuned: bool, on_text: Callable[[int, str], bool] | None = None
    ) -> list[ModelSuggestion]:
        self.asked.append((list(images), tuned))
        if (error := self.suggest_error(images)) is not None:
            raise error
        for text in self.growth if on_text is not None else ():
            time.sleep(self.pace)
            assert on_text is not None
            if not on_text(0, text):
                return [ModelSuggestion(text, -1.0)]
        self.suggest_gate.wait(20)
        answers = self.tuned_on if tuned else 0
        return [ModelSuggestion(self.tell(image, answers), -0.1 * (image + 1)) for image in images]

    def train(
        self, answers: Sequence[Answer], *, on_step: Callable[[int, int, float], None], should_stop: Callable[[], bool]
    ) -> RoundResult:
        on_step(1, 4, 2.0)
        while not self.gate.wait(0.01):
            if should_stop():
                raise RoundStopped
        self.rounds.append(list(answers))
        if self.failures and (error := self.failures.pop(0)) is not None:
            raise error
        self.tuned_on = len(answers)
        return RoundResult(4, 0.1, 0.5, "low")

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "answers").write_text(f"{self.tuned_on}")

    def load(self, folder: Path) -> None:
        path = folder / "answers"
        if not path.exists():
            raise LorgnetteError("no adapter", where=str(folder))
        self.tuned_on = int(path.read_text())

    def close(self) -> None:
        self.is_closed = True


class WatchedSession(Session):
    """idle_version: of the state for which the device thread last had nothing to do."""

    idle_version = 0

    def _choose_job(self) -> Any:
        job = super()._choose_job()
        if job is None:
            self.idle_version = self._version
        return job

    @property
    def is_idle(self) -> bool:
        return self.idle_version == self._version


class Run(NamedTuple):
    """A run that is open."""

    session: WatchedSession
    learner: FakeLearner
    images: ImageList
    folder: Path
    thread: DeviceThread

    def until(self, is_so: Callable[[dict[str, Any]], bool], timeout: float = 10.0) -> dict[str, Any]:
        """The first view of which it is so."""
        deadline, version = time.monotonic() + timeout, 0
        while time.monotonic() < deadline:
            view = self.session.view(TAB)
            if is_so(view):
                return view
            version = self.session.wait_for_change(view["version"], deadline - time.monotonic())
        raise AssertionError(f"{version}: {self.session.view(TAB)}")

    def until_asked(self) -> dict[str, Any]:
        """The current image, once its suggestion is there."""
        current: dict[str, Any] = self.until(lambda view: (view["current"] or {}).get("state") == "ready")["current"]
        return current

    def answer(self, text: str | None = None) -> dict[str, Any]:
        """Wait for the suggestion, answer with the truth or a text, and return what was asked."""
        current = self.until_asked()
        self.session.answer(TAB, current["id"], truth(current["image"]) if text is None else text, 3, 1.5)
        return current

    def until_idle(self, timeout: float = 10.0) -> dict[str, Any]:
        """Once the device thread has nothing to do."""
        deadline = time.monotonic() + timeout
        while not self.session.is_idle:
            assert time.monotonic() < deadline, self.session.view(TAB)
            time.sleep(0.001)
        return self.session.view(TAB)


def open_images(folder: Path, num_images: int) -> ImageList:
    if not folder.exists():
        write_images(folder, num_images)
    return read_images(folder, "What?")


@contextmanager
def open_run(
    folder: Path,
    num_images: int = 40,
    learner: FakeLearner | None = None,
    images: ImageList | None = None,
    **options: Any,
) -> Iterator[Run]:
    """The run in `folder`/run about the images in `folder`/images; both are made if they are not there."""
    images = images or open_images(folder / "images", num_images)
    learner = learner or FakeLearner(len(images))
    run_dir = RunDir(folder / "run")
    run_dir.path.mkdir(exist_ok=True)
    with run_dir.lock(print) as locked:
        journal = Journal.open(run_dir.path / "journal.jsonl")
        thread = None
        try:
            settings = SessionOptions(**{"model": "fake", "prompt": "What?", "seed": 3, **options})
            session = WatchedSession(journal, images, settings, locked)
            thread = DeviceThread(session, learner)  # type: ignore[arg-type]
            yield Run(session, learner, images, run_dir.path, thread)
        finally:
            if isinstance(learner, FakeLearner):
                learner.gate.set()
                learner.suggest_gate.set()
                learner.open_gate.set()
            if thread is not None:
                assert thread.close(10)
            journal.close()
