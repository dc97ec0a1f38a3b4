"""Callbacks: log and trackers get the same records; Ctrl-C stops the trainer."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from lorgnette.distributed import World
from lorgnette.errors import UsageError
from lorgnette.io.async_writer import AsyncWriter
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunDir
from lorgnette.report.run_log import RunLog
from lorgnette.report.trackers.tracker import GuardedTracker
from lorgnette.training.callbacks import SilentCallbacks, TrainingCallbacks
from lorgnette.training.checkpoint import find_latest_checkpoint, load_checkpoint
from lorgnette.training.eval_samples import Samples
from lorgnette.training.interrupt import GracefulInterrupt
from lorgnette.training.random_state import get_rng_state
from lorgnette.training.trainer import StepReport
from lorgnette.types import PredictionRow

REPORT = StepReport(
    step=10, epoch=0.5, loss=1.25, learning_rate=1e-4, grad_norm=2.5, tokens_per_s=900.4, data_wait=0.1, seconds=2
)


class Recorder:
    """A tracker that records its calls; from step `fails_at` it fails."""

    address = None

    def __init__(self, fails_at: int | None = None) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.answers: list[tuple[int, list[str]]] = []
        self._fails_at = fails_at

    def start(self, settings: Any) -> None: ...

    def log(self, metrics: Any, step: int) -> None:
        if self._fails_at is not None and step >= self._fails_at:
            raise ConnectionError("no network")
        self.metrics.append((step, dict(metrics)))

    def log_predictions(self, rows: Any, step: int) -> None:
        self.answers.append((step, [row.tuned for row in rows]))

    def finish(self) -> None: ...


class FixedSamples:
    """A sample logger with one fixed answer."""

    selects_best, metric = False, "CIDEr-D"

    def generate(self) -> Samples:
        return Samples((PredictionRow("a", (), "", ("a dog",), tuned="a dog"),), {"ROUGE-L": 1.0})


Built = tuple[TrainingCallbacks, Path, list[Any]]


@pytest.fixture
def build_callbacks(tmp_path: Path, terminal: Terminal) -> Iterator[Callable[..., Built]]:
    """build_callbacks(tracker, …) → the callbacks, the run folder, and the calls of the progress bar."""
    logs: list[RunLog] = []

    def build(*trackers: Recorder) -> Built:
        run_dir = RunDir.create(tmp_path / "run")
        progress: list[Any] = []

        def snapshot() -> Callable[[Path], None]:
            return lambda folder: (folder / "adapter").write_text("weights") and None

        logs.append(RunLog(run_dir.log))
        callbacks = TrainingCallbacks(
            run_dir,
            terminal,
            logs[-1],
            [GuardedTracker(f"tracker {i}", tracker, terminal.warn) for i, tracker in enumerate(trackers)],
            snapshot=snapshot,
            writer=AsyncWriter(),
            advance=lambda count, note="": progress.append((count, note)),
            interrupt=GracefulInterrupt(terminal),
            get_total_steps=lambda: 99,
            samples=FixedSamples(),  # type: ignore[arg-type]
        )
        return callbacks, run_dir.path, progress

    yield build
    for log in logs:
        log.close()


def test_the_log_and_all_trackers_get_the_same(build_callbacks: Any, terminal_output: io.StringIO) -> None:
    a, b = Recorder(), Recorder()
    callbacks, run, progress = build_callbacks(a, b)
    callbacks.on_step_end(10, 1.25)
    callbacks.on_log(REPORT)
    callbacks.on_evaluate(99, 1.5)
    assert progress == [(1, "loss 1.250")]
    assert a.metrics == b.metrics
    assert [(step, sorted(metrics)[:2]) for step, metrics in a.metrics] == [
        (10, ["train/data_wait", "train/epoch"]),
        (99, ["eval/loss"]),
        (99, ["eval/ROUGE-L"]),
    ]
    assert a.metrics[0][1]["train/loss"] == 1.25
    assert a.metrics[0][1]["train/learning_rate"] == 1e-4
    records = run_log.read_log(run / "log.jsonl")
    assert [(r["kind"], r["step"], r.get("loss"), r.get("eval_loss")) for r in records] == [
        ("train", 10, 1.25, None),
        ("eval", 99, None, 1.5),
        ("samples", 99, None, None),
        ("eval", 99, None, None),
    ]
    assert "step 10    loss 1.2500  lr 1.00e-04  grad norm 2.50  900 tokens/s" in terminal_output.getvalue()


def test_samples_go_to_the_log_at_every_step_and_to_trackers_before_the_last(build_callbacks: Any) -> None:
    """The last point of the metric's curve has the same token limit as the others."""
    tracker = Recorder()
    callbacks, run, _ = build_callbacks(tracker)
    for step in (0, 5, 99):
        callbacks.on_evaluate(step, 1.0)
    assert tracker.answers == [(0, ["a dog"]), (5, ["a dog"])]
    assert (5, {"eval/ROUGE-L": 1.0}) in tracker.metrics
    records = [record for record in run_log.read_log(run / "log.jsonl") if record["kind"] == "samples"]
    sample = {"kind": "samples", "places": [], "answers": ["a dog"], "cut": [False], "max_new_tokens": 32}
    assert records == [sample | {"step": step} for step in (0, 5, 99)]
    curve = run_log.select_series(run_log.read_log(run / "log.jsonl"), "eval", "ROUGE-L")
    assert [step for step, _ in curve] == [0, 5, 99]


def test_trackers_get_the_answers_of_the_last_step_once(build_callbacks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The final answers follow right after, with the base model's."""
    monkeypatch.setattr(FixedSamples, "selects_best", True)
    tracker = Recorder()
    callbacks, _, _ = build_callbacks(tracker)
    for step in (5, 99):
        callbacks.on_evaluate(step, 1.0)
    assert tracker.answers == [(5, ["a dog"])]
    assert (99, {"eval/ROUGE-L": 1.0}) in tracker.metrics


def test_the_score_of_a_step_is_its_loss_or_the_metric(build_callbacks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks, run, _ = build_callbacks()
    assert callbacks.on_evaluate(5, 1.25) == 1.25
    monkeypatch.setattr(FixedSamples, "selects_best", True)
    assert callbacks.on_evaluate(5, 1.25) == -1.0  # ROUGE-L: higher is better
    assert callbacks.on_evaluate(99, 1.25) == -1.0  # at the last step too
    monkeypatch.setattr(FixedSamples, "generate", lambda self: Samples((), {"latex-edit-distance": 0.25}))
    assert callbacks.on_evaluate(7, 1.25) == 0.25
    monkeypatch.setattr(FixedSamples, "generate", lambda self: Samples((), {}))
    with pytest.raises(UsageError, match=r"undefined .*train\.metric_for_best_model=CIDEr-D.*data\.holdout=N"):
        callbacks.on_evaluate(7, 1.25)
    curve = run_log.select_series(run_log.read_log(run / "log.jsonl"), "eval", "ROUGE-L")
    assert curve == [(5, 1.0), (5, 1.0), (99, 1.0)]


def test_a_tracker_that_fails_stops_nothing(build_callbacks: Any, terminal_output: io.StringIO) -> None:
    failing, healthy = Recorder(fails_at=20), Recorder()
    callbacks, run, _ = build_callbacks(failing, healthy)
    for step in (10, 20, 30):
        callbacks.on_log(replace(REPORT, step=step))
    assert [step for step, _ in healthy.metrics] == [10, 20, 30]
    assert [step for step, _ in failing.metrics] == [10]
    assert terminal_output.getvalue().count("tracker 0 could not log and is switched off: no network") == 1
    assert [record["step"] for record in run_log.read_log(run / "log.jsonl")] == [10, 20, 30]


def test_checkpoints_are_saved_logged_and_rotated(build_callbacks: Any) -> None:
    callbacks, run, _ = build_callbacks()
    for step in (7, 8, 9, 10):
        callbacks.on_save(step, {"step": step, "best": [7, 0.5, 0], "random": [get_rng_state()]})
    callbacks.writer.wait()
    step, path = find_latest_checkpoint(run / "checkpoints") or (0, run)
    assert step == 10
    assert (path / "adapter").read_text() == "weights"
    assert load_checkpoint(path, torch.device("cpu"))["step"] == 10
    assert run_log.read_log(run / "log.jsonl")[0]["text"] == "checkpoint step-000007"
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step-000007", "step-000009", "step-000010"}  # the best and the newest two


def test_the_state_of_the_optimizer_may_be_copied_when_it_is_written(build_callbacks: Any) -> None:
    callbacks, run, _ = build_callbacks()
    writing = Event()

    def copy_optimizer() -> dict[str, Any]:
        assert writing.wait(20), "the caller waits for the copy"
        return {"exp_avg": [torch.ones(3)]}

    state = {"step": 9, "best": [9, 0.5, 0], "random": [get_rng_state()]}
    callbacks.save_checkpoint(9, state, callbacks.snapshot(), copy_optimizer)
    writing.set()
    callbacks.writer.wait()
    saved = load_checkpoint(run / "checkpoints" / "step-000009", torch.device("cpu"))
    assert torch.equal(saved["optimizer"]["exp_avg"][0], torch.ones(3))


def test_ctrl_c_stops_the_trainer(build_callbacks: Any) -> None:
    callbacks, _, _ = build_callbacks()
    assert not callbacks.should_stop()
    with callbacks.interrupt:
        os.kill(os.getpid(), signal.SIGINT)
    assert callbacks.should_stop()


def test_other_ranks_take_part_and_write_nothing(build_callbacks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and copies of the adapter may need all ranks, so the first rank and the others make the same ones."""
    callbacks, run, progress = build_callbacks()
    shared: list[str] = []

    def generate(self: FixedSamples) -> Samples:
        shared.append("answers")
        return Samples((), {})

    def snapshot() -> Callable[[Path], None]:
        shared.append("copy")
        return lambda folder: None

    monkeypatch.setattr(FixedSamples, "generate", generate)
    first = replace(callbacks, snapshot=snapshot)
    other = SilentCallbacks(callbacks.samples, callbacks.interrupt, snapshot, callbacks.get_total_steps)
    state = {"step": 9, "best": [0, 0.0, 0], "random": []}

    def call_all(each: Any) -> list[str]:
        shared.clear()
        each.on_step_end(9, 1.0)
        each.on_log(REPORT)
        each.on_evaluate(9, 1.0)
        each.on_new_best(9)
        each.on_new_best(99)  # the last step
        each.on_skipped_step(9, 2.0)
        each.on_out_of_memory(9, 128, 1)
        each.on_save(9, dict(state))
        return list(shared)

    assert call_all(other) == ["answers", "copy", "copy"]
    assert not progress
    assert run_log.read_log(run / "log.jsonl") == []
    assert not (run / "checkpoints").exists()
    assert call_all(first) == ["answers", "copy", "copy"]
    first.writer.wait()
    assert other.should_stop() is first.should_stop() is False


def test_a_rank_that_runs_out_of_memory_is_named(build_callbacks: Any, terminal_output: io.StringIO) -> None:
    callbacks, _, _ = build_callbacks()
    callbacks.on_out_of_memory(5, 128, 0)
    replace(callbacks, world=World(0, 2)).on_out_of_memory(5, 64, 1)
    said = terminal_output.getvalue()
    assert "step 5: out of memory; continuing with micro-batches of at most 128 tokens" in said
    assert "step 5: out of memory on rank 1; continuing with micro-batches of at most 64 tokens" in said
