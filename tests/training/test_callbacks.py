"""What happens beside the training: the log and every tracker get the same; Ctrl-C stops once, then at once."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.errors import UsageError
from lorgnette.io.async_writer import AsyncWriter
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import PredictionRow
from lorgnette.report.run_log import RunLog
from lorgnette.report.trackers.tracker import GuardedTracker
from lorgnette.training import checkpoint as checkpoints
from lorgnette.training.callbacks import GracefulInterrupt, TrainingCallbacks
from lorgnette.training.eval_samples import Samples
from lorgnette.training.job import Job
from lorgnette.training.trainer import StepReport

REPORT = StepReport(
    step=10, epoch=0.5, loss=1.25, learning_rate=1e-4, grad_norm=2.5, tokens_per_s=900.4, data_wait=0.1, seconds=2
)


class Recorder:
    """A tracker that keeps what it is told; from `fails_at` on it fails."""

    address = None

    def __init__(self, fails_at: int | None = None) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.shown: list[tuple[int, list[str]]] = []
        self._fails_at = fails_at

    def start(self, settings: Any) -> None: ...

    def log(self, metrics: Any, step: int) -> None:
        if self._fails_at is not None and step >= self._fails_at:
            raise ConnectionError("no network")
        self.told.append((step, dict(metrics)))

    def predictions(self, rows: Any, step: int) -> None:
        self.shown.append((step, [row.tuned for row in rows]))

    def finish(self) -> None: ...


class Film:
    """Always the same answer."""

    judges, metric = False, "CIDEr-D"

    def frame(self) -> Samples:
        return Samples((PredictionRow("a", (), "", ("a dog",), tuned="a dog"),), {"ROUGE-L": 1.0})


@pytest.fixture
def watching(
    job: Callable[..., Job], terminal: Terminal
) -> Iterator[Callable[..., tuple[TrainingCallbacks, Path, list[Any]]]]:
    """watching(tracker, …) → the watcher, its run's folder, and what the bar was told."""
    logs: list[RunLog] = []
    writing = AsyncWriter()

    def made(*trackers: Recorder) -> tuple[TrainingCallbacks, Path, list[Any]]:
        started = job()
        advanced: list[Any] = []
        guarded = [GuardedTracker(f"tracker {i}", tracker, terminal.warn) for i, tracker in enumerate(trackers)]

        def advance(more: int, beside: str = "") -> None:
            advanced.append((more, beside))

        def snapshot() -> Callable[[Path], None]:
            def write(folder: Path) -> None:
                (folder / "adapter").write_text("weights")

            return write

        logs.append(RunLog(started.folder.log))
        watcher = TrainingCallbacks(
            started, logs[-1], guarded, snapshot=snapshot, writer=writing, advance=advance, interrupt=GracefulInterrupt(terminal),
            total_steps=99, samples=Film(),
        )  # fmt: skip
        return watcher, started.folder.path, advanced

    yield made
    for kept in logs:
        kept.close()


def test_several_trackers_and_the_log_get_the_same(watching: Any, said: io.StringIO) -> None:
    one, other = Recorder(), Recorder()
    watcher, run, advanced = watching(one, other)
    watcher.stepped(10, 1.25)
    watcher.logged(REPORT)
    watcher.evaluated(99, 1.5)
    assert advanced == [(1, "loss 1.250")]
    assert one.told == other.told
    assert [(step, sorted(metrics)[:2]) for step, metrics in one.told] == [
        (10, ["train/data_wait", "train/epoch"]),
        (99, ["eval/loss"]),
    ]
    assert one.told[0][1]["train/loss"] == 1.25
    records = run_log.read_log(run / "log.jsonl")
    assert [(r["kind"], r["step"], r.get("loss"), r.get("eval_loss")) for r in records] == [
        ("train", 10, 1.25, None),
        ("eval", 99, None, 1.5),
    ]
    assert "step 10    loss 1.2500  lr 1.00e-04  grad norm 2.50  900 tokens/s" in said.getvalue()


def test_the_film_goes_to_the_log_and_the_trackers_but_not_at_the_end(watching: Any) -> None:
    tracker = Recorder()
    watcher, run, _ = watching(tracker)
    for step in (0, 5, 99):
        watcher.evaluated(step, 1.0)
    assert tracker.shown == [(0, ["a dog"]), (5, ["a dog"])]
    assert (5, {"eval/ROUGE-L": 1.0}) in tracker.told
    frames = [record for record in run_log.read_log(run / "log.jsonl") if record["kind"] == "frame"]
    assert frames == [{"kind": "frame", "answers": ["a dog"], "step": step} for step in (0, 5)]


def test_a_last_step_that_is_judged_is_shown_to_the_trackers_once(
    watching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final answers come right after, with the untuned model's."""
    monkeypatch.setattr(Film, "judges", True)
    tracker = Recorder()
    watcher, _, _ = watching(tracker)
    for step in (5, 99):
        watcher.evaluated(step, 1.0)
    assert tracker.shown == [(5, ["a dog"])]
    assert (99, {"eval/ROUGE-L": 1.0}) in tracker.told


def test_a_step_is_known_by_its_loss_or_by_the_film(watching: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher, run, _ = watching()
    assert watcher.evaluated(5, 1.25) == 1.25
    monkeypatch.setattr(Film, "judges", True)
    assert watcher.evaluated(5, 1.25) == -1.0  # ROUGE-L: higher is better
    assert watcher.evaluated(99, 1.25) == -1.0  # of the last step too
    frame = Samples((), {"latex-edit-distance": 0.25})
    monkeypatch.setattr(Film, "frame", lambda self: frame)
    assert watcher.evaluated(7, 1.25) == 0.25
    monkeypatch.setattr(Film, "frame", lambda self: Samples((), {}))
    with pytest.raises(UsageError, match=r"no value .*train\.best=CIDEr-D.*data\.holdout=50"):
        watcher.evaluated(7, 1.25)
    assert run_log.select_series(run_log.read_log(run / "log.jsonl"), "eval", "ROUGE-L") == [
        (5, 1.0),
        (5, 1.0),
        (99, 1.0),
    ]


def test_a_tracker_that_fails_stops_nothing(watching: Any, said: io.StringIO) -> None:
    failing, healthy = Recorder(fails_at=20), Recorder()
    watcher, run, _ = watching(failing, healthy)
    for step in (10, 20, 30):
        watcher.logged(replace(REPORT, step=step))
    assert [step for step, _ in healthy.told] == [10, 20, 30]
    assert [step for step, _ in failing.told] == [10]
    assert said.getvalue().count("tracker 0 could not log and is off from here: no network") == 1
    assert [record["step"] for record in run_log.read_log(run / "log.jsonl")] == [10, 20, 30]


def test_a_checkpoint_is_saved_and_logged(watching: Any) -> None:
    watcher, run, _ = watching()
    for step in (7, 8, 9, 10):
        watcher.checkpoint(step, {"step": step, "best": [7, 0.5, 0]})
    watcher._writing.wait()
    step, path = checkpoints.find_latest_checkpoint(run / "checkpoints") or (0, run)
    assert step == 10
    assert (path / "adapter").read_text() == "weights"
    assert checkpoints.load_checkpoint(path, torch.device("cpu"))["step"] == 10
    assert run_log.read_log(run / "log.jsonl")[0]["text"] == "checkpoint step-000007"
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {"step-000007", "step-000009", "step-000010"}  # the best and the newest two


def test_the_first_ctrl_c_asks_and_the_second_stops(terminal: Terminal, said: io.StringIO) -> None:
    before = signal.getsignal(signal.SIGINT)
    with GracefulInterrupt(terminal) as stop:
        assert not stop.is_requested
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_requested
        assert "stopping after this step; Ctrl-C again stops at once" in said.getvalue()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_watcher_passes_it_on(watching: Any) -> None:
    watcher, _, _ = watching()
    assert not watcher.stop()
    with watcher._stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert watcher.stop()
