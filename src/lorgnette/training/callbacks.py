"""What happens beside the training: the log, the trackers, the bar, checkpoints, Ctrl-C."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lorgnette.io.async_writer import AsyncWriter
from lorgnette.io.atomic import atomic_folder
from lorgnette.metrics.held_out import build_undefined_metric_error, get_direction
from lorgnette.report.console import ProgressCallback, Terminal
from lorgnette.report.run_log import RunLog
from lorgnette.report.trackers.tracker import Tracker, to_scalars
from lorgnette.training import checkpoint as checkpoints
from lorgnette.training.eval_samples import SampleLogger, Samples
from lorgnette.training.job import Job
from lorgnette.training.trainer import StepReport

AdapterSnapshot = Callable[[], Callable[[Path], None]]
"""The adapter as it is now: what writes it into a folder, at any later time and on any thread."""


class GracefulInterrupt:
    """Ctrl-C: the first finishes the step and saves, the second stops at once."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.is_requested = False

    def __enter__(self) -> "GracefulInterrupt":
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True
        self._terminal.warn("stopping after this step; Ctrl-C again stops at once, without saving")


class TrainingCallbacks:
    """The training loop's watcher."""

    def __init__(
        self,
        job: Job,
        log: RunLog,
        trackers: Sequence[Tracker],
        *,
        snapshot: AdapterSnapshot,
        writer: AsyncWriter,
        advance: ProgressCallback,
        interrupt: GracefulInterrupt,
        total_steps: int,
        samples: SampleLogger,
    ) -> None:
        """snapshot: of the adapter; total: steps of the run."""
        self._film = samples
        self._folder, self._terminal, self._log, self._trackers = job.folder, job.terminal, log, trackers
        self._snapshot, self._writing = snapshot, writer
        self._advance, self._stop, self._total = advance, interrupt, total_steps

    def on_step_end(self, step: int, loss: float) -> None:
        self._advance(1, f"loss {loss:.3f}")

    def on_log(self, report: StepReport) -> None:
        self._record({"kind": "train", **asdict(report)})
        self._terminal.print(
            f"step {report.step:<5} loss {report.loss:.4f}  lr {report.learning_rate:.2e}  grad norm {report.grad_norm:.2f}  "
            f"{report.tokens_per_s:.0f} tokens/s"
        )

    def on_evaluate(self, step: int, loss: float) -> float:
        self._record({"kind": "eval", "step": step, "eval_loss": loss})
        self._terminal.print(f"step {step:<5} eval loss {loss:.4f}")
        if step == self._total and not self._film.selects_best:
            return loss  # the run's own final answers come right after
        frame = self._film.generate()
        self._log_samples(step, frame)
        if not self._film.selects_best:
            return loss
        if not frame.scores:
            raise build_undefined_metric_error(self._film.metric or "")
        [(name, value)] = frame.scores.items()
        self._terminal.print(f"step {step:<5} {name} {value:.4f}")
        return -get_direction(name) * value

    def _log_samples(self, step: int, frame: Samples) -> None:
        self._log.write({**frame.record, "step": step})
        if frame.scores:
            self._record({"kind": "eval", "step": step, **frame.scores})
        if step == self._total:
            return  # trackers are shown the final answers in a moment, the untuned model's with them
        for tracker in self._trackers:
            tracker.log_predictions(frame.rows, step)

    def on_new_best(self, step: int) -> None:
        if step == self._total:
            return  # it is saved in a moment as the adapter
        write = self._snapshot()

        def save() -> None:
            with atomic_folder(self._folder.best) as beside:
                write(beside)

        self._writing(save)

    def on_save(self, step: int, state: dict[str, Any]) -> None:
        self.save_checkpoint(step, state, self._snapshot())

    def save_checkpoint(self, step: int, state: dict[str, Any], write: Callable[[Path], None]) -> None:
        """A checkpoint of an adapter that `write` writes."""
        random, folder = checkpoints.get_rng_state(), self._folder.checkpoints

        def save() -> None:
            path = checkpoints.save_checkpoint(folder, step, write, {**state, "random": random})
            self._log.write({"kind": "event", "step": step, "text": f"checkpoint {path.name}", "level": "info"})
            checkpoints.rotate_checkpoints(folder, best_step=state["best"][0])

        self._writing(save)

    def on_out_of_memory(self, step: int, max_tokens: int) -> None:
        text = f"step {step} did not fit into memory: from here on in passes of at most {max_tokens} tokens"
        self._terminal.warn(text)
        self._log.write({"kind": "event", "step": step, "text": text, "level": "warning"})

    def should_stop(self) -> bool:
        return self._stop.is_requested

    def _record(self, record: dict[str, Any]) -> None:
        self._log.write(record)
        for tracker in self._trackers:
            tracker.log(to_scalars(record), record["step"])
