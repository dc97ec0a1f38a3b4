"""Kills a `teach` run at each event of its journal, and at each file that it replaces; starts it again; compares.

    python teach_kills.py FOLDER [--model] [--sample N] [--only TEXT] [--break] [--jobs N]

A point is a line of the journal (before it is written, in the middle of it, after it) or a rename in the run's folder
(before it, after it). The process kills itself there (SIGKILL). The same person goes on with the run in a new process,
and sends again what was not confirmed. In the end captions.csv, suggestions.csv and the answers of the last round must
be those of the run that nobody killed. The points `chain N` kill every process at its Nth point, until one comes
through.

The learner has no model: its adapter is the list of the answers that it was trained on. The person answers, takes an
answer back, mends one, skips an image and finishes. --break loses the first answer before a restart, so that the
comparison must fail. Prints a JSON object.

--model: a shorter run with the built-in model and drawn scenes, killed at the last event of each kind, around the
adapter's rename and in a round's steps. The weights of its adapter must be those of the run that nobody killed, byte
for byte.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from taught_run import TAB, FakeLearner, Run, open_images, open_run, truth, write_images

from lorgnette import recipes
from lorgnette.demo.captions import write_caption
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.io.atomic import atomic_folder
from lorgnette.report.console import Terminal
from lorgnette.teaching import journal
from lorgnette.teaching.learner import Answer, Learner, RoundResult

EVERY = 4
CHAINS = (19, 23, 31)
"""Points that every process lives for. The start and a round that was cut off take 17 of them."""
MAX_STARTS = 60
MAX_SECONDS = 60.0
"""What a person waits for takes less."""
SETTINGS = ("device=cpu", "train.batch_size=4", "train.max_steps=4", "predict.max_new_tokens=6", "lora.rank=4")
"""Of the run with a model."""


class KeptLearner(FakeLearner):
    """Its adapter is a file with its answers."""

    answers: Sequence[Answer] = ()

    def train(self, answers: Sequence[Answer], **callbacks: Any) -> RoundResult:
        result = super().train(answers, **callbacks)
        self.answers = list(answers)
        return result

    def save(self, folder: Path) -> None:
        with atomic_folder(folder) as temporary:
            content = json.dumps([(answer.image, answer.text) for answer in self.answers])
            (temporary / "adapter.json").write_text(content)

    def load(self, folder: Path) -> None:
        pairs = json.loads((folder / "adapter.json").read_text())
        self.answers = [Answer(*pair) for pair in pairs]
        self.tuned_on = len(self.answers)


class SteppingLearner(Learner):
    """Each step of a round is a point."""

    points: "Points"

    def train(self, answers: Sequence[Answer], *, on_step: Callable[..., None], **callbacks: Any) -> RoundResult:
        def note(*step: Any) -> None:
            self.points.reach("step", "before")
            on_step(*step)

        return super().train(answers, on_step=note, **callbacks)


@dataclass(frozen=True)
class Scenario:
    """What the person does, with which images and which learner. files: compared in the end."""

    plan: Sequence[str]
    num_images: int
    write_images: Callable[[Path, int], None]
    build_learner: Callable[[Sequence[Path], "Points"], Any]
    tell: Callable[[int], str]
    files: Sequence[str]


def draw_images(folder: Path, num_images: int) -> None:
    folder.mkdir()
    for number in range(num_images):
        draw_scene(sample_scene(random.Random(number))).save(folder / f"image-{number}.png")


def build_model(images: Sequence[Path], points: "Points") -> Learner:
    settings = recipes.load_settings("teach-demo", SETTINGS)
    learner = SteppingLearner(settings, images, Terminal())
    learner.points = points
    return learner


TABLES = ("captions.csv", "suggestions.csv")
FAKE = Scenario(
    [*["answer"] * 5, "undo", "answer", "skip", *["answer"] * 4, "mend", *["answer"] * 3, "finish"],
    18, write_images, lambda images, points: KeptLearner(len(images)), truth, (*TABLES, "adapter/adapter.json"),
)  # fmt: skip
MODEL = Scenario(
    [*["answer"] * 5, "undo", *["answer"] * 5, "finish"],
    12, draw_images, build_model, lambda number: write_caption(sample_scene(random.Random(number))),
    (*TABLES, "adapter/adapter_model.safetensors"),
)  # fmt: skip


class Points:
    """Counts the points of this process, and dies at the one named, or at the one with this number."""

    def __init__(self, kill_at: str | None, kill_after: int | None) -> None:
        self._kill_at, self._kill_after = kill_at, kill_after
        self._counts: dict[str, int] = {}
        self.names: list[str] = []

    def reach(self, what: str, moment: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + (moment == "before")
        name = f"{what} {self._counts[what]} {moment}"
        self.names.append(name)
        if name == self._kill_at or len(self.names) == self._kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self, folder: Path) -> None:
        write_all, replace = journal._write_all, os.replace

        def write_lines(descriptor: int, content: bytes) -> None:
            for line in content.splitlines(keepends=True):
                event, middle = json.loads(line)["event"], len(line) // 2
                self.reach(event, "before")
                write_all(descriptor, line[:middle])
                self.reach(event, "during")
                write_all(descriptor, line[middle:])
                self.reach(event, "after")

        def replace_file(source: Any, target: Any) -> None:
            name = os.path.relpath(target, folder)
            if not name.startswith("run" + os.sep):
                replace(source, target)
                return
            name = "part" if ".part" in name or name.endswith(".old") else name
            self.reach(name, "before")
            replace(source, target)
            self.reach(name, "after")

        journal._write_all = write_lines
        os.replace = replace_file  # type: ignore[assignment]


class Person:
    """Follows the plan. What is sent and not confirmed is kept in a file, as a page keeps it."""

    def __init__(self, run: Run, scenario: Scenario, path: Path) -> None:
        self._run, self._scenario, self._path = run, scenario, path
        content = json.loads(path.read_text()) if path.exists() else {"step": 0, "sent": None}
        self._step, self._sent = content["step"], content["sent"]

    def follow(self) -> None:
        while self._step < len(self._scenario.plan):
            if self._sent is None:
                self._sent = self._choose(self._scenario.plan[self._step])
                self._keep()
            self._send(*self._sent)
            self._step, self._sent = self._step + 1, None
            self._keep()

    def _choose(self, action: str) -> list[str]:
        self._run.until_idle(MAX_SECONDS)  # so that every run has the same points
        if action in ("answer", "skip"):
            current = self._run.until_asked()
            return [action, current["id"], self._scenario.tell(current["image"])]
        history = self._run.session.view(TAB)["history"]
        return [action, history[0 if action == "undo" else 3]["id"], "mended"]

    def _send(self, action: str, id: str, text: str) -> None:
        session = self._run.session
        match action:
            case "answer":
                session.answer(TAB, id, text, 2, 1.0)
            case "skip":
                session.skip(TAB, id)
            case "mend":
                session.mend(TAB, id, text)
            case "undo":  # a person sees whether it is taken back
                if session.view(TAB)["history"][0]["id"] == id:
                    session.undo(TAB)
            case "finish":
                session.finish(TAB)
                self._run.until(lambda view: view["phase"] == "finished", MAX_SECONDS)

    def _keep(self) -> None:
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps({"step": self._step, "sent": self._sent}))
        temporary.rename(self._path)


def play(scenario: Scenario, folder: Path, kill_at: str | None, kill_after: int | None) -> None:
    """One process: read the run, go on with the plan, and write the names of its points."""
    points = Points(kill_at, kill_after)
    points.install(folder)
    images = open_images(folder / "images", scenario.num_images)
    learner = scenario.build_learner(images.paths, points)
    with open_run(folder, images=images, learner=learner, every=EVERY) as run:
        run.until(lambda view: view["phase"] == "ready", MAX_SECONDS)
        Person(run, scenario, folder / "person.json").follow()
    (folder / "points.json").write_text(json.dumps(points.names))


class Outcome(NamedTuple):
    """status: negative for a signal."""

    status: int
    output: str


def start(scenario: Scenario, folder: Path, kill_at: str | None = None, kill_after: int | None = None) -> Outcome:
    """`play` in a forked process."""
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            sys.stderr = open(2, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
            try:
                play(scenario, folder, kill_at, kill_after)
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    return Outcome(os.waitstatus_to_exitcode(status), (folder / "output.txt").read_text())


def describe(scenario: Scenario, folder: Path) -> dict[str, str]:
    """What a run has come to."""
    contents = {name: (folder / "run" / name).read_bytes() for name in scenario.files}
    place = str(folder).encode()
    found = {name: hashlib.sha256(value.replace(place, b"")).hexdigest() for name, value in contents.items()}
    return found | {"left over": f"{sorted(path.name for path in (folder / 'run').glob('.*'))}"}


class Harness:
    """broken: before a start, a run loses its first answer."""

    def __init__(self, folder: Path, scenario: Scenario, *, broken: bool) -> None:
        self._folder, self._scenario, self._broken, self._numbers = folder, scenario, broken, count(1)
        whole = self._make_folder()
        outcome = start(scenario, whole)
        assert outcome.status == 0, outcome.output
        self.expected = describe(scenario, whole)
        self.points: list[str] = json.loads((whole / "points.json").read_text())

    def check(self, point: str) -> str:
        """Kill, start again, compare. Returns what is wrong; "" if nothing."""
        folder = self._make_folder()
        every = int(point.split()[1]) if point.startswith("chain") else None
        outcome = start(self._scenario, folder, None if every else point, every)
        if outcome.status != -signal.SIGKILL:
            return f"was not killed: status {outcome.status}: {outcome.output[-500:]}"
        for _ in range(MAX_STARTS):
            if self._broken:
                self._lose_answer(folder / "run" / "journal.jsonl")
            outcome = start(self._scenario, folder, None, every)
            if outcome.status != -signal.SIGKILL:
                break
        if outcome.status:
            return f"not recovered: status {outcome.status}: {outcome.output[-500:]}"
        found = describe(self._scenario, folder)
        shutil.rmtree(folder)
        different = [name for name in self.expected if self.expected[name] != found[name]]
        return f"different: {', '.join(different)}" if different else ""

    @staticmethod
    def _lose_answer(path: Path) -> None:
        lines = path.read_text().splitlines(keepends=True)
        first = next((index for index, line in enumerate(lines) if '"answered"' in line), len(lines))
        path.write_text("".join(lines[:first] + lines[first + 1 :]))

    def _make_folder(self) -> Path:
        folder = self._folder / f"{next(self._numbers)}"
        folder.mkdir()
        self._scenario.write_images(folder / "images", self._scenario.num_images)
        return folder


def select_spread(points: Sequence[str], number: int) -> list[str]:
    return [points[(2 * i + 1) * len(points) // (2 * number)] for i in range(min(number, len(points)))]


def select_last(points: Sequence[str]) -> list[str]:
    """The last points before and after each kind of event and before and after the adapter is replaced; in the steps of
    the last round, the middle."""
    last = {(what, moment): point for point in points for what, _, moment in [point.split()]}
    chosen = [point for (what, moment), point in last.items() if "." not in what and moment != "during"]
    steps = [point for point in points if point.startswith("step")]
    return [*chosen, steps[-3]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--break", dest="broken", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(arguments.folder.resolve() / "cache")
    scenario = MODEL if arguments.model else FAKE
    harness = Harness(arguments.folder.resolve(), scenario, broken=arguments.broken)
    chains = [f"chain {number}" for number in CHAINS]
    all_points = select_last(harness.points) if arguments.model else [*harness.points, *chains]
    selected = [point for point in all_points if arguments.only in point]
    if arguments.sample is not None:
        selected = select_spread(selected, arguments.sample)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = dict(zip(selected, pool.map(partial(Harness.check, harness), selected), strict=True))
    faults = {point: fault for point, fault in results.items() if fault}
    result = {"points": len(all_points), "checked": len(selected), "faults": faults}
    sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    sys.exit(bool(faults))
