"""Callbacks of a training: log, trackers, progress bar, checkpoints. Of several ranks only rank 0 has these."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorgnette.distributed import World
from lorgnette.io.async_writer import AsyncWriter
from lorgnette.io.atomic import atomic_folder
from lorgnette.metrics.own_metric import OwnMetricError
from lorgnette.metrics.registry import METRICS, build_undefined_metric_error
from lorgnette.report.console import ProgressCallback, Terminal
from lorgnette.report.run_dir import RunDir
from lorgnette.report.run_log import RunLog
from lorgnette.report.trackers.tracker import Tracker, to_scalars
from lorgnette.training.checkpoint import rotate_checkpoints, save_checkpoint
from lorgnette.training.eval_samples import SampleLogger
from lorgnette.training.interrupt import GracefulInterrupt
from lorgnette.training.step_count import SKIPPED_STEP_KIND
from lorgnette.training.trainer import StepReport
from lorgnette.training.user_callbacks import UserCallbacks

AdapterSnapshot = Callable[[], Callable[[Path], None]]
"""Copies the adapter as it is now. The returned function writes the copy into a folder, later and on any thread."""

SHOWN_STEPS = 10
"""Steps between two records of the log on the terminal; the progress bar shows the loss of each step."""


@dataclass(frozen=True)
class TrainingCallbacks:
    """Implements the trainer's `Callbacks`. advance: moves the progress bar; get_total_steps: they may become fewer."""

    run_dir: RunDir
    terminal: Terminal
    log: RunLog
    trackers: Sequence[Tracker]
    snapshot: AdapterSnapshot
    writer: AsyncWriter
    samples: SampleLogger
    advance: ProgressCallback
    interrupt: GracefulInterrupt
    get_total_steps: Callable[[], int]
    logging_steps: int = 1
    user: UserCallbacks = field(default_factory=UserCallbacks)
    world: World = World()

    def on_step_end(self, step: int, loss: float) -> None:
        self.advance(1, f"loss {loss:.3f}")
        self.user.call("on_step_end", step, loss)

    def on_log(self, report: StepReport) -> None:
        self._record({"kind": "train", **report.to_record()})
        is_shown = report.step // SHOWN_STEPS > (report.step - self.logging_steps) // SHOWN_STEPS
        if is_shown or report.step in (1, self.get_total_steps()):
            self.terminal.print(
                f"step {report.step:<5} loss {report.loss:.4f}  lr {report.learning_rate:.2e}  "
                f"grad norm {report.grad_norm:.2f}  {report.tokens_per_s:.0f} tokens/s"
            )
        self.user.call("on_log", report)

    def on_evaluate(self, step: int, loss: float) -> float:
        """Log the eval loss and the sample answers; returns the score of the step, lower is better."""
        self._record({"kind": "eval", "step": step, "eval_loss": loss})
        self.terminal.print(f"step {step:<5} eval loss {loss:.4f}")
        try:
            samples = self.samples.generate()
        except OwnMetricError as error:  # the user's metric: save this step, then raise it
            self.user.error = error
            return math.inf
        self.log.write(samples.to_record(step))
        if samples.scores:
            self._record({"kind": "eval", "step": step, **samples.scores})
        self.user.call("on_evaluate", step, {"eval_loss": loss, **samples.scores})
        # Trackers get the full answers right after the last step.
        for tracker in () if step == self.get_total_steps() else self.trackers:
            tracker.log_predictions(samples.rows, step)
        if not self.samples.selects_best:
            return loss
        if not samples.scores:
            raise build_undefined_metric_error(self.samples.metric or "")
        [(name, value)] = samples.scores.items()
        self.terminal.print(f"step {step:<5} {name} {value:.4f}")
        return -METRICS[name].sign * value

    def on_new_best(self, step: int) -> None:
        """Save the best adapter in the background; the last step is saved as the run's adapter anyway."""
        if step == self.get_total_steps():
            return
        self.run_dir.check_in_place()
        self.writer.wait()  # for the memory of the copy that it writes: to pin more takes longer
        write = self.snapshot()

        def save() -> None:
            with atomic_folder(self.run_dir.best) as folder:
                write(folder)

        self.writer.submit(save)

    def on_save(self, step: int, state: dict[str, Any]) -> None:
        self.save_checkpoint(step, state, self.snapshot())

    def save_checkpoint(
        self,
        step: int,
        state: dict[str, Any],
        write_adapter: Callable[[Path], None],
        copy_optimizer: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """Save a checkpoint in the background. state: from `Trainer.gather_state`, which every rank calls.

        copy_optimizer: returns the optimizer's state if it is not in `state`; it is called in the background. Raises
        LorgnetteError if the run folder was deleted or renamed.
        """
        self.run_dir.check_in_place()
        folder = self.run_dir.checkpoints

        def save() -> None:
            optimizer = {"optimizer": copy_optimizer()} if copy_optimizer else {}
            path = save_checkpoint(folder, step, write_adapter, {**state, **optimizer})
            self.log.write({"kind": "event", "step": step, "text": f"checkpoint {path.name}", "level": "info"})
            rotate_checkpoints(folder, best_step=state["best"][0])

        self.writer.submit(save)

    def on_skipped_step(self, step: int, loss_scale: float) -> None:
        text = f"step {step}: skipped, its gradient was too large for float16; the loss scale is now {loss_scale:g}"
        self.terminal.print(text)
        self.log.write({"kind": SKIPPED_STEP_KIND, "step": step, "loss_scale": loss_scale, "text": text})

    def on_out_of_memory(self, step: int, max_tokens: int, rank: int) -> None:
        on_rank = f" on rank {rank}" if self.world.size > 1 else ""
        text = f"step {step}: out of memory{on_rank}; continuing with micro-batches of at most {max_tokens} tokens"
        self.terminal.warn(text)
        self.log.write({"kind": "event", "step": step, "text": text, "level": "warning"})

    def should_stop(self) -> bool:
        return self.interrupt.is_requested or self.user.is_stopping

    def _record(self, record: dict[str, Any]) -> None:
        """Write a record to the log and its numbers to the trackers."""
        self.log.write(record)
        for tracker in self.trackers:
            tracker.log(to_scalars(record), record["step"])


@dataclass(frozen=True)
class SilentCallbacks:
    """Those of the ranks other than 0: they write nothing, but answer their share and may be asked to stop.

    snapshot, get_total_steps: as of TrainingCallbacks. Where that copies the adapter, these take part.
    """

    samples: SampleLogger
    interrupt: GracefulInterrupt
    snapshot: AdapterSnapshot
    get_total_steps: Callable[[], int]

    def on_evaluate(self, step: int, loss: float) -> float:
        """Answer this rank's share of the samples. The score is rank 0's."""
        self.samples.generate()
        return loss

    def on_new_best(self, step: int) -> None:
        if step != self.get_total_steps():
            self.snapshot()

    def on_save(self, step: int, state: dict[str, Any]) -> None:
        self.snapshot()

    def should_stop(self) -> bool:
        return self.interrupt.is_requested

    def on_step_end(self, step: int, loss: float) -> None: ...
    def on_log(self, report: StepReport) -> None: ...
    def on_skipped_step(self, step: int, loss_scale: float) -> None: ...
    def on_out_of_memory(self, step: int, max_tokens: int, rank: int) -> None: ...
