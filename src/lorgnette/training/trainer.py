"""The training loop, read from top to bottom.

One step: take its examples, run their passes forward and backward, clip, AdamW. The loss of a step is the mean over
its labels, however many passes it was cut into.
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from lorgnette.config import TrainSettings
from lorgnette.errors import LorgnetteError
from lorgnette.processing.packing import Share, split_into_microbatches
from lorgnette.training.epoch_order import compute_learning_rate
from lorgnette.training.optimizer import Optimizer
from lorgnette.training.sampler import BatchSampler
from lorgnette.types import Encoded, PackedBatch

MAX_ROWS_IN_ERROR = 16


class Engine(Protocol):
    """What the loop asks of a model. Losses and gradients stay on its device."""

    @property
    def parameters(self) -> Sequence[Tensor]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def prefix_sharing(self) -> Share:
        """What examples of a pass may share in training."""
        ...

    @property
    def eval_prefix_sharing(self) -> Share:
        """The same where there is no dropout."""
        ...

    def backward(self, batch: PackedBatch, rng_offset: int) -> Float[Tensor, ""]:
        """The pass's loss; its gradient is added to the parameters'. draw: a number that dropout is drawn from."""
        ...

    def compute_loss(self, batch: PackedBatch) -> Float[Tensor, ""]:
        """The same without dropout and gradient."""
        ...

    def sync_weights(self) -> None:
        """The parameters have changed."""
        ...


@dataclass(frozen=True, slots=True)
class StepReport:
    """One line of the log. step counts finished steps; loss is the mean since the line before; lr, grad_norm (before
    clipping) are the step's; data_wait is the share of the time spent waiting for batches."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    data_wait: float
    seconds: float


@dataclass(slots=True)
class RunningStats:
    """What the next line of the log will cover. seconds: of the steps alone, without evaluation and saving."""

    total_loss: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that was launched. numbers: [loss, gradient norm], on their way to the host until `there`."""

    step: int
    learning_rate: float
    microbatches: Sequence[PackedBatch]
    loss_and_norm: Tensor
    copy_done: torch.Event | None

    def read_loss_and_norm(self) -> tuple[float, float]:
        if self.copy_done is not None:
            self.copy_done.synchronize()
        loss, norm = self.loss_and_norm.tolist()
        return loss, norm


class Callbacks(Protocol):
    """Who is told what happens."""

    def on_step_end(self, step: int, loss: float) -> None: ...
    def on_log(self, report: StepReport) -> None: ...
    def on_evaluate(self, step: int, loss: float) -> float:
        """What the step is known by, lower is better: the eval loss, or another number of the watcher's."""
        ...

    def on_new_best(self, step: int) -> None: ...
    def on_save(self, step: int, state: dict[str, Any]) -> None: ...
    def on_out_of_memory(self, step: int, max_tokens: int) -> None: ...
    def should_stop(self) -> bool: ...


class Trainer:
    """A run between its steps: optimizer, counters, and the window the next log line covers."""

    def __init__(
        self,
        engine: Engine,
        sampler: BatchSampler,
        held_out: Sequence[Encoded],
        settings: TrainSettings,
        *,
        max_tokens_per_microbatch: int | None = None,
    ) -> None:
        """pass_tokens: fewer than the settings', where memory is short."""
        self.engine, self.sampler, self.held_out, self.settings = engine, sampler, held_out, settings
        self.steps_per_epoch, self.total_steps = sampler.steps_per_epoch, sampler.total_steps
        self.optimizer = Optimizer(engine.parameters, settings)
        self.max_tokens_per_microbatch = max_tokens_per_microbatch or settings.max_tokens_per_microbatch
        self.step = 0
        self.stats = RunningStats()
        self.best_step, self.best_score, self.num_evals_since_best = 0, math.inf, 0
        self._pending: deque[PendingStep] = deque()
        self._last_time = time.perf_counter()
        self._max_pending = 1 if engine.parameters[0].is_cuda else 0
        """Steps the host may be ahead: while it reads one step's loss, the device works on the next."""

    def is_done(self) -> bool:
        """The last step is taken, or `patience` evaluations have passed without a new best."""
        patience = self.settings.early_stopping_patience
        return self.step == self.total_steps or (patience is not None and self.num_evals_since_best >= patience)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the adapter's own weights."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "window": asdict(self.stats),
            "best": [self.best_step, self.best_score, self.num_evals_since_best],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.stats = RunningStats(**state["window"])
        self.best_step, self.best_score, self.num_evals_since_best = state["best"]

    def train(self, callbacks: Callbacks) -> bool:
        """Train until `done`. False where the watcher stopped it before: a checkpoint was asked for then. What is to be
        kept of the last step is the caller's to say.

        Raises LorgnetteError on a loss or gradient that is not finite, naming the rows of that step; the adapter
        keeps the values it had before it.
        """
        if self.step == 0 and self.held_out:
            callbacks.on_evaluate(0, self.evaluate())
        if self.is_done():
            return True
        eval_steps = self.settings.eval_steps or self.steps_per_epoch
        self._last_time = time.perf_counter()
        for batches, wait in self._prefetch():
            self.stats.wait_seconds += wait
            self._launch_step(batches, callbacks)
            evaluating = bool(self.held_out) and (self.step % eval_steps == 0 or self.step == self.total_steps)
            saving = callbacks.should_stop() or self.step % self.settings.save_steps == 0
            self._drain(callbacks, 0 if evaluating or saving or self.step == self.total_steps else self._max_pending)
            if evaluating:
                self._evaluate_and_track_best(callbacks)
            if self.is_done():
                self._drain(callbacks, 0)
                return True
            stopping = callbacks.should_stop()
            if stopping or saving:
                self._drain(callbacks, 0)
                callbacks.on_save(self.step, self.state_dict())
            if stopping:
                return False
            if evaluating or saving:
                self._last_time = time.perf_counter()
        return True

    def _launch_step(self, batches: Sequence[PackedBatch], watcher: Callbacks) -> None:
        """Launch a step. One that the device's memory does not hold is cut into smaller passes: the same step."""
        settings = self.settings
        lr = compute_learning_rate(
            self.step,
            self.total_steps,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            lr_scheduler_type=settings.lr_scheduler_type,
        )
        while (loss := self._try_backward(batches)) is None:
            batches = self._halve_microbatches(batches, watcher)
        numbers = self.optimizer.step(loss, lr)
        self.engine.sync_weights()
        self.step += 1
        there = None
        if numbers.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            there = torch.cuda.current_stream().record_event()
        self._pending.append(PendingStep(self.step, lr, batches, numbers, there))

    def _try_backward(self, batches: Sequence[PackedBatch]) -> Tensor | None:
        """The step's loss, or None where memory does not hold it: what failed is let go of with the error, and only
        then can its memory be given back."""
        try:
            return self._backward(batches)
        except torch.OutOfMemoryError:
            return None

    def _backward(self, batches: Sequence[PackedBatch]) -> Tensor:
        losses = [self.engine.backward(batch, self.step * 2**16 + i) for i, batch in enumerate(batches)]
        return torch.stack(losses).sum()

    def _halve_microbatches(self, batches: Sequence[PackedBatch], watcher: Callbacks) -> list[PackedBatch]:
        """The step in passes of half the tokens. Raises torch.OutOfMemoryError where they are single examples."""
        longest = max(len(batch.input_ids) for batch in batches)
        if all(len(batch.examples) == 1 for batch in batches):
            raise torch.OutOfMemoryError(f"a pass of one example, {longest} tokens, does not fit")
        torch.cuda.empty_cache()
        for parameter in self.engine.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        self.max_tokens_per_microbatch = longest // 2
        watcher.on_out_of_memory(self.step + 1, self.max_tokens_per_microbatch)
        return self._pack_step(self.step)

    def _drain(self, watcher: Callbacks, lag: int) -> None:
        """Tell of the steps that the host is more than `lag` behind on."""
        while len(self._pending) > lag:
            taken = self._pending.popleft()
            loss, norm = taken.read_loss_and_norm()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.step = taken.step - 1
                raise _build_not_finite_error(taken.step, loss, norm, taken.microbatches)
            now = time.perf_counter()
            self.stats.seconds += now - self._last_time
            self._last_time = now
            self.stats.total_loss += loss
            self.stats.num_steps += 1
            self.stats.num_tokens += sum(len(batch.input_ids) for batch in taken.microbatches)
            watcher.on_step_end(taken.step, loss)
            if taken.step == 1 or taken.step % self.settings.logging_steps == 0 or taken.step == self.total_steps:
                watcher.on_log(self._build_report(taken, norm))

    def _build_report(self, taken: PendingStep, grad_norm: float) -> StepReport:
        """The log's line over the window, which begins anew."""
        window, self.stats = self.stats, RunningStats()
        return StepReport(
            taken.step,
            epoch=taken.step / self.steps_per_epoch,
            loss=window.total_loss / window.num_steps,
            learning_rate=taken.learning_rate,
            grad_norm=grad_norm,
            tokens_per_s=window.num_tokens / window.seconds,
            data_wait=window.wait_seconds / window.seconds,
            seconds=window.seconds,
        )

    def _evaluate_and_track_best(self, watcher: Callbacks) -> None:
        """An eval loss, and whether the step is the best so far."""
        mark = watcher.on_evaluate(self.step, self.evaluate())
        if mark < self.best_score:
            self.best_step, self.best_score, self.num_evals_since_best = self.step, mark, 0
            watcher.on_new_best(self.step)
        else:
            self.num_evals_since_best += 1

    def evaluate(self) -> float:
        """The mean loss over the held-out labels, without dropout. Captions of a picture share it."""
        batches = split_into_microbatches(
            self.held_out, self.max_tokens_per_microbatch, prefix_sharing=self.engine.eval_prefix_sharing
        )
        return sum(self.engine.compute_loss(batch).item() for batch in batches)

    def _prefetch(self) -> Iterator[tuple[list[PackedBatch], float]]:
        """The batches of every step left, packed one step ahead on a thread, and the seconds waited for each."""
        with ThreadPoolExecutor(1) as pool:
            packing, most = pool.submit(self._pack_step, self.step), self.max_tokens_per_microbatch
            for step in range(self.step, self.total_steps):
                begun = time.perf_counter()
                batches = packing.result()
                if self.max_tokens_per_microbatch < most:  # since then, a step did not fit
                    batches = self._pack_step(step)
                wait = time.perf_counter() - begun
                if step + 1 < self.total_steps:
                    packing, most = pool.submit(self._pack_step, step + 1), self.max_tokens_per_microbatch
                yield batches, wait

    def _pack_step(self, step: int) -> list[PackedBatch]:
        return self.sampler.pack_step(step, self.max_tokens_per_microbatch, self.engine.prefix_sharing)


def _build_not_finite_error(step: int, loss: float, norm: float, batches: Sequence[PackedBatch]) -> LorgnetteError:
    rows = [example for batch in batches for example in batch.examples]
    named = "; ".join(example.where for example in rows[:MAX_ROWS_IN_ERROR])
    more = f"; and {len(rows) - MAX_ROWS_IN_ERROR} more" if len(rows) > MAX_ROWS_IN_ERROR else ""
    return LorgnetteError(
        f"step {step}: loss {loss}, gradient norm {norm} — not finite, the step was not taken",
        where=f"its rows: {named}{more}",
        hint="look at these rows with `lorgnette check`; a lower train.learning_rate or dtype=float32 may help",
    )
