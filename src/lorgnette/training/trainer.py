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

from lorgnette.config import Train
from lorgnette.errors import LorgnetteError
from lorgnette.processing.packing import Share, passes
from lorgnette.training.epoch_order import learning_rate
from lorgnette.training.optimizer import Optimizer
from lorgnette.training.sampler import Batches
from lorgnette.types import Encoded, PackedBatch

ROWS_NAMED = 16


class Engine(Protocol):
    """What the loop asks of a model. Losses and gradients stay on its device."""

    @property
    def parameters(self) -> Sequence[Tensor]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def share(self) -> Share:
        """What examples of a pass may share in training."""
        ...

    @property
    def share_in_evaluation(self) -> Share:
        """The same where there is no dropout."""
        ...

    def backward(self, batch: PackedBatch, draw: int) -> Float[Tensor, ""]:
        """The pass's loss; its gradient is added to the parameters'. draw: a number that dropout is drawn from."""
        ...

    def loss(self, batch: PackedBatch) -> Float[Tensor, ""]:
        """The same without dropout and gradient."""
        ...

    def updated(self) -> None:
        """The parameters have changed."""
        ...


@dataclass(frozen=True, slots=True)
class StepReport:
    """One line of the log. step counts finished steps; loss is the mean since the line before; lr, grad_norm (before
    clipping) are the step's; data_wait is the share of the time spent waiting for batches."""

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float
    data_wait: float
    seconds: float


@dataclass(slots=True)
class Window:
    """What the next line of the log will cover. seconds: of the steps alone, without evaluation and saving."""

    loss: float = 0.0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A step that was launched. numbers: [loss, gradient norm], on their way to the host until `there`."""

    step: int
    lr: float
    batches: Sequence[PackedBatch]
    numbers: Tensor
    there: torch.Event | None

    def read(self) -> tuple[float, float]:
        if self.there is not None:
            self.there.synchronize()
        loss, norm = self.numbers.tolist()
        return loss, norm


class Watcher(Protocol):
    """Who is told what happens."""

    def stepped(self, step: int, loss: float) -> None: ...
    def logged(self, report: StepReport) -> None: ...
    def evaluated(self, step: int, loss: float) -> float:
        """What the step is known by, lower is better: the eval loss, or another number of the watcher's."""
        ...

    def best(self, step: int) -> None: ...
    def checkpoint(self, step: int, state: dict[str, Any]) -> None: ...
    def smaller(self, step: int, tokens: int) -> None: ...
    def stop(self) -> bool: ...


class Training:
    """A run between its steps: optimizer, counters, and the window the next log line covers."""

    def __init__(
        self,
        engine: Engine,
        batches: Batches,
        held_out: Sequence[Encoded],
        train: Train,
        *,
        pass_tokens: int | None = None,
    ) -> None:
        """pass_tokens: fewer than the settings', where memory is short."""
        self.engine, self.batches, self.held_out, self.settings = engine, batches, held_out, train
        self.epoch_steps, self.total = batches.epoch_steps, batches.total
        self.optimizer = Optimizer(engine.parameters, train)
        self.pass_tokens = pass_tokens or train.pass_tokens
        self.step = 0
        self.window = Window()
        self.best_step, self.best_mark, self.worse = 0, math.inf, 0
        self._unread: deque[Taken] = deque()
        self._clock = time.perf_counter()
        self._lag = 1 if engine.parameters[0].is_cuda else 0
        """Steps the host may be ahead: while it reads one step's loss, the device works on the next."""

    def done(self) -> bool:
        """The last step is taken, or `patience` evaluations have passed without a new best."""
        patience = self.settings.patience
        return self.step == self.total or (patience is not None and self.worse >= patience)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the adapter's own weights."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state(),
            "window": asdict(self.window),
            "best": [self.best_step, self.best_mark, self.worse],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.optimizer.restore(state["optimizer"])
        self.window = Window(**state["window"])
        self.best_step, self.best_mark, self.worse = state["best"]

    def run(self, watcher: Watcher) -> bool:
        """Train until `done`. False where the watcher stopped it before: a checkpoint was asked for then. What is to be
        kept of the last step is the caller's to say.

        Raises LorgnetteError on a loss or gradient that is not finite, naming the rows of that step; the adapter
        keeps the values it had before it.
        """
        if self.step == 0 and self.held_out:
            watcher.evaluated(0, self.evaluate())
        if self.done():
            return True
        eval_steps = self.settings.eval_steps or self.epoch_steps
        self._clock = time.perf_counter()
        for batches, wait in self._ahead():
            self.window.waited += wait
            self._take(batches, watcher)
            evaluating = bool(self.held_out) and (self.step % eval_steps == 0 or self.step == self.total)
            saving = watcher.stop() or self.step % self.settings.save_steps == 0
            self._read(watcher, 0 if evaluating or saving or self.step == self.total else self._lag)
            if evaluating:
                self._held(watcher)
            if self.done():
                self._read(watcher, 0)
                return True
            stopping = watcher.stop()
            if stopping or saving:
                self._read(watcher, 0)
                watcher.checkpoint(self.step, self.state())
            if stopping:
                return False
            if evaluating or saving:
                self._clock = time.perf_counter()
        return True

    def _take(self, batches: Sequence[PackedBatch], watcher: Watcher) -> None:
        """Launch a step. One that the device's memory does not hold is cut into smaller passes: the same step."""
        settings = self.settings
        lr = learning_rate(
            self.step, self.total, peak=settings.lr, warmup=settings.warmup_steps, schedule=settings.schedule
        )
        while (loss := self._tried(batches)) is None:
            batches = self._smaller(batches, watcher)
        numbers = self.optimizer.step(loss, lr)
        self.engine.updated()
        self.step += 1
        there = None
        if numbers.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            there = torch.cuda.current_stream().record_event()
        self._unread.append(Taken(self.step, lr, batches, numbers, there))

    def _tried(self, batches: Sequence[PackedBatch]) -> Tensor | None:
        """The step's loss, or None where memory does not hold it: what failed is let go of with the error, and only
        then can its memory be given back."""
        try:
            return self._backward(batches)
        except torch.OutOfMemoryError:
            return None

    def _backward(self, batches: Sequence[PackedBatch]) -> Tensor:
        losses = [self.engine.backward(batch, self.step * 2**16 + i) for i, batch in enumerate(batches)]
        return torch.stack(losses).sum()

    def _smaller(self, batches: Sequence[PackedBatch], watcher: Watcher) -> list[PackedBatch]:
        """The step in passes of half the tokens. Raises torch.OutOfMemoryError where they are single examples."""
        longest = max(len(batch.tokens) for batch in batches)
        if all(len(batch.examples) == 1 for batch in batches):
            raise torch.OutOfMemoryError(f"a pass of one example, {longest} tokens, does not fit")
        torch.cuda.empty_cache()
        for parameter in self.engine.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        self.pass_tokens = longest // 2
        watcher.smaller(self.step + 1, self.pass_tokens)
        return self._packed(self.step)

    def _read(self, watcher: Watcher, lag: int) -> None:
        """Tell of the steps that the host is more than `lag` behind on."""
        while len(self._unread) > lag:
            taken = self._unread.popleft()
            loss, norm = taken.read()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.step = taken.step - 1
                raise _not_finite(taken.step, loss, norm, taken.batches)
            now = time.perf_counter()
            self.window.seconds += now - self._clock
            self._clock = now
            self.window.loss += loss
            self.window.steps += 1
            self.window.tokens += sum(len(batch.tokens) for batch in taken.batches)
            watcher.stepped(taken.step, loss)
            if taken.step == 1 or taken.step % self.settings.log_steps == 0 or taken.step == self.total:
                watcher.logged(self._line(taken, norm))

    def _line(self, taken: Taken, grad_norm: float) -> StepReport:
        """The log's line over the window, which begins anew."""
        window, self.window = self.window, Window()
        return StepReport(
            taken.step,
            epoch=taken.step / self.epoch_steps,
            loss=window.loss / window.steps,
            lr=taken.lr,
            grad_norm=grad_norm,
            tokens_per_s=window.tokens / window.seconds,
            data_wait=window.waited / window.seconds,
            seconds=window.seconds,
        )

    def _held(self, watcher: Watcher) -> None:
        """An eval loss, and whether the step is the best so far."""
        mark = watcher.evaluated(self.step, self.evaluate())
        if mark < self.best_mark:
            self.best_step, self.best_mark, self.worse = self.step, mark, 0
            watcher.best(self.step)
        else:
            self.worse += 1

    def evaluate(self) -> float:
        """The mean loss over the held-out labels, without dropout. Captions of a picture share it."""
        batches = passes(self.held_out, self.pass_tokens, share=self.engine.share_in_evaluation)
        return sum(self.engine.loss(batch).item() for batch in batches)

    def _ahead(self) -> Iterator[tuple[list[PackedBatch], float]]:
        """The batches of every step left, packed one step ahead on a thread, and the seconds waited for each."""
        with ThreadPoolExecutor(1) as pool:
            packing, most = pool.submit(self._packed, self.step), self.pass_tokens
            for step in range(self.step, self.total):
                begun = time.perf_counter()
                batches = packing.result()
                if self.pass_tokens < most:  # since then, a step did not fit
                    batches = self._packed(step)
                wait = time.perf_counter() - begun
                if step + 1 < self.total:
                    packing, most = pool.submit(self._packed, step + 1), self.pass_tokens
                yield batches, wait

    def _packed(self, step: int) -> list[PackedBatch]:
        return self.batches.step(step, self.pass_tokens, self.engine.share)


def _not_finite(step: int, loss: float, norm: float, batches: Sequence[PackedBatch]) -> LorgnetteError:
    rows = [example for batch in batches for example in batch.examples]
    named = "; ".join(example.where for example in rows[:ROWS_NAMED])
    more = f"; and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return LorgnetteError(
        f"step {step}: loss {loss}, gradient norm {norm} — not finite, the step was not taken",
        where=f"its rows: {named}{more}",
        remedy="look at these rows with `lorgnette check`; a lower train.lr or dtype=float32 may help",
    )
