"""Callbacks of a training: log, trackers, progress bar, checkpoints, Ctrl-C."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from lorgnette.io.async_writer import AsyncWriter
from lorgnette.io.atomic import atomic_folder
from lorgnette.metrics.registry import METRICS, build_undefined_metric_error
from lorgnette.report.console import ProgressCallback, Terminal
from lorgnette.report.run_dir import RunDir
from lorgnette.report.run_log import RunLog
from lorgnette.report.trackers.tracker import Tracker, to_scalars
from lorgnette.training.checkpoint import get_rng_state, rotate_checkpoints, save_checkpoint
from lorgnette.training.eval_samples import SampleLogger, Samples
from lorgnette.training.trainer import StepReport

AdapterSnapshot = Callable[[], Callable[[Path], None]]
"""Copies the adapter as it is now. The returned function writes the copy into a folder, later and on any thread."""


class GracefulInterrupt:
    """Ctrl-C: the first finishes the step and saves, the second stops at once."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.is_requested = False

    def __enter__(self) -> "GracefulInterrupt":
        self._previous_handler = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous_handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True
        self._terminal.warn("stopping after this step; press Ctrl-C again to stop at once without saving")


class TrainingCallbacks:
    """Implements the trainer's `Callbacks`."""

    def __init__(
        self,
        run_dir: RunDir,
        terminal: Terminal,
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
        """advance: moves the progress bar."""
        self._run_dir, self._terminal, self._log, self._trackers = run_dir, terminal, log, trackers
        self._snapshot, self._writer, self._samples = snapshot, writer, samples
        self._advance, self._interrupt, self._total_steps = advance, interrupt, total_steps

    def on_step_end(self, step: int, loss: float) -> None:
        self._advance(1, f"loss {loss:.3f}")

    def on_log(self, report: StepReport) -> None:
        self._record({"kind": "train", **asdict(report)})
        self._terminal.print(
            f"step {report.step:<5} loss {report.loss:.4f}  lr {report.learning_rate:.2e}  "
            f"grad norm {report.grad_norm:.2f}  {report.tokens_per_s:.0f} tokens/s"
        )

    def on_evaluate(self, step: int, loss: float) -> float:
        """Log the eval loss and the sample answers; returns the score of the step, lower is better."""
        self._record({"kind": "eval", "step": step, "eval_loss": loss})
        self._terminal.print(f"step {step:<5} eval loss {loss:.4f}")
        is_last = step == self._total_steps
        # The final answers come right after the last step, so samples are needed there only to select the best.
        if is_last and not self._samples.selects_best:
            return loss
        samples = self._samples.generate()
        self._log_samples(step, samples, to_trackers=not is_last)
        if not self._samples.selects_best:
            return loss
        if not samples.scores:
            raise build_undefined_metric_error(self._samples.metric or "")
        [(name, value)] = samples.scores.items()
        self._terminal.print(f"step {step:<5} {name} {value:.4f}")
        return -METRICS[name].sign * value

    def on_new_best(self, step: int) -> None:
        """Save the best adapter in the background; the last step is saved as the run's adapter anyway."""
        if step == self._total_steps:
            return
        write = self._snapshot()

        def save() -> None:
            with atomic_folder(self._run_dir.best) as folder:
                write(folder)

        self._writer.submit(save)

    def on_save(self, step: int, state: dict[str, Any]) -> None:
        self.save_checkpoint(step, state, self._snapshot())

    def save_checkpoint(self, step: int, state: dict[str, Any], write_adapter: Callable[[Path], None]) -> None:
        """Save a checkpoint in the background with the random state of this moment."""
        random, folder = get_rng_state(), self._run_dir.checkpoints

        def save() -> None:
            path = save_checkpoint(folder, step, write_adapter, {**state, "random": random})
            self._log.write({"kind": "event", "step": step, "text": f"checkpoint {path.name}", "level": "info"})
            rotate_checkpoints(folder, best_step=state["best"][0])

        self._writer.submit(save)

    def on_out_of_memory(self, step: int, max_tokens: int) -> None:
        text = f"step {step}: out of memory; continuing with micro-batches of at most {max_tokens} tokens"
        self._terminal.warn(text)
        self._log.write({"kind": "event", "step": step, "text": text, "level": "warning"})

    def should_stop(self) -> bool:
        return self._interrupt.is_requested

    def _log_samples(self, step: int, samples: Samples, *, to_trackers: bool) -> None:
        """to_trackers: false at the last step, whose final answers they get with the base model's."""
        self._log.write({**samples.record, "step": step})
        if samples.scores:
            self._record({"kind": "eval", "step": step, **samples.scores})
        if to_trackers:
            for tracker in self._trackers:
                tracker.log_predictions(samples.rows, step)

    def _record(self, record: dict[str, Any]) -> None:
        """Write a record to the log and its numbers to the trackers."""
        self._log.write(record)
        for tracker in self._trackers:
            tracker.log(to_scalars(record), record["step"])
