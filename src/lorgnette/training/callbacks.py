"""What happens beside the training: the log, the trackers, the bar, checkpoints, Ctrl-C."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lorgnette.io.async_writer import Writing
from lorgnette.io.atomic import folder_whole
from lorgnette.metrics.held_out import direction, valueless
from lorgnette.report.console import Advance, Terminal
from lorgnette.report.run_log import RunLog
from lorgnette.report.trackers.tracker import Tracker, scalars
from lorgnette.training import checkpoint as checkpoints
from lorgnette.training.eval_samples import Filmstrip, Frame
from lorgnette.training.job import Job
from lorgnette.training.trainer import StepReport

Snapshot = Callable[[], Callable[[Path], None]]
"""The adapter as it is now: what writes it into a folder, at any later time and on any thread."""


class Stop:
    """Ctrl-C: the first finishes the step and saves, the second stops at once."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.asked = False

    def __enter__(self) -> "Stop":
        self._before = signal.signal(signal.SIGINT, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._terminal.warn("stopping after this step; Ctrl-C again stops at once, without saving")


class Watching:
    """The training loop's watcher."""

    def __init__(
        self,
        job: Job,
        log: RunLog,
        trackers: Sequence[Tracker],
        *,
        snapshot: Snapshot,
        writing: Writing,
        advance: Advance,
        stop: Stop,
        total: int,
        film: Filmstrip,
    ) -> None:
        """snapshot: of the adapter; total: steps of the run."""
        self._film = film
        self._folder, self._terminal, self._log, self._trackers = job.folder, job.terminal, log, trackers
        self._snapshot, self._writing = snapshot, writing
        self._advance, self._stop, self._total = advance, stop, total

    def stepped(self, step: int, loss: float) -> None:
        self._advance(1, f"loss {loss:.3f}")

    def logged(self, report: StepReport) -> None:
        self._record({"kind": "train", **asdict(report)})
        self._terminal.say(
            f"step {report.step:<5} loss {report.loss:.4f}  lr {report.lr:.2e}  grad norm {report.grad_norm:.2f}  "
            f"{report.tokens_per_s:.0f} tokens/s"
        )

    def evaluated(self, step: int, loss: float) -> float:
        self._record({"kind": "eval", "step": step, "eval_loss": loss})
        self._terminal.say(f"step {step:<5} eval loss {loss:.4f}")
        if step == self._total and not self._film.judges:
            return loss  # the run's own final answers come right after
        frame = self._film.frame()
        self._show(step, frame)
        if not self._film.judges:
            return loss
        if not frame.scores:
            raise valueless(self._film.metric or "")
        [(name, value)] = frame.scores.items()
        self._terminal.say(f"step {step:<5} {name} {value:.4f}")
        return -direction(name) * value

    def _show(self, step: int, frame: Frame) -> None:
        self._log.write({**frame.record, "step": step})
        if frame.scores:
            self._record({"kind": "eval", "step": step, **frame.scores})
        if step == self._total:
            return  # trackers are shown the final answers in a moment, the untuned model's with them
        for tracker in self._trackers:
            tracker.predictions(frame.rows, step)

    def best(self, step: int) -> None:
        if step == self._total:
            return  # it is saved in a moment as the adapter
        write = self._snapshot()

        def save() -> None:
            with folder_whole(self._folder.best) as beside:
                write(beside)

        self._writing(save)

    def checkpoint(self, step: int, state: dict[str, Any]) -> None:
        self.keep(step, state, self._snapshot())

    def keep(self, step: int, state: dict[str, Any], write: Callable[[Path], None]) -> None:
        """A checkpoint of an adapter that `write` writes."""
        random, folder = checkpoints.random_state(), self._folder.checkpoints

        def save() -> None:
            path = checkpoints.save(folder, step, write, {**state, "random": random})
            self._log.write({"kind": "event", "step": step, "text": f"checkpoint {path.name}", "level": "info"})
            checkpoints.rotate(folder, best=state["best"][0])

        self._writing(save)

    def smaller(self, step: int, tokens: int) -> None:
        text = f"step {step} did not fit into memory: from here on in passes of at most {tokens} tokens"
        self._terminal.warn(text)
        self._log.write({"kind": "event", "step": step, "text": text, "level": "warning"})

    def stop(self) -> bool:
        return self._stop.asked

    def _record(self, record: dict[str, Any]) -> None:
        self._log.write(record)
        for tracker in self._trackers:
            tracker.log(scalars(record), record["step"])
