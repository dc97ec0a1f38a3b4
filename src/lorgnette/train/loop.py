"""The training loop, read from top to bottom.

One step: take its examples, run their passes forward and backward, clip, AdamW. The loss of a step is the mean over
its labels, however many passes it was cut into.
"""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from lorgnette.config import Train
from lorgnette.encode.pack import passes
from lorgnette.errors import LorgnetteError
from lorgnette.train.schedule import learning_rate, members, steps_in_epoch
from lorgnette.types import Encoded, PackedBatch

ROWS_NAMED = 16


class Engine(Protocol):
    """What the loop asks of a model; features are for whoever shows it a picture that is not in the data."""

    model: Any
    features: Any

    def loss(self, batch: PackedBatch) -> Float[Tensor, ""]: ...


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


class Watcher(Protocol):
    """Who is told what happens."""

    def stepped(self, step: int, loss: float) -> None: ...
    def logged(self, report: StepReport) -> None: ...
    def evaluated(self, step: int, loss: float) -> None: ...
    def best(self, step: int) -> None: ...
    def checkpoint(self, step: int, state: dict[str, Any]) -> None: ...
    def stop(self) -> bool: ...


class Training:
    """A run between its steps: optimizer, counters, and the window the next log line covers."""

    def __init__(
        self, engine: Engine, examples: Sequence[Encoded], held_out: Sequence[Encoded], train: Train, seed: int
    ) -> None:
        self.engine, self.examples, self.held_out, self.settings, self.seed = engine, examples, held_out, train, seed
        self.per_step = train.batch_size * train.accumulation
        self.epoch_steps = steps_in_epoch(len(examples), self.per_step)
        whole = self.epoch_steps * train.epochs
        self.total = min(whole, train.max_steps or whole)
        self.parameters = [p for p in engine.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=train.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=train.weight_decay, fused=True
        )
        self.step = 0
        self.window = Window()
        self.best_step, self.best_loss, self.worse = 0, math.inf, 0

    @property
    def done(self) -> bool:
        """The last step is taken, or `patience` eval losses have passed without a new best."""
        patience = self.settings.patience
        return self.step == self.total or (patience is not None and self.worse >= patience)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the adapter's own weights."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "window": asdict(self.window),
            "best": [self.best_step, self.best_loss, self.worse],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.window = Window(**state["window"])
        self.best_step, self.best_loss, self.worse = state["best"]

    def run(self, watcher: Watcher) -> bool:
        """Train until `done`. False where the watcher stopped it before: a checkpoint was asked for then too.

        Raises LorgnetteError on a loss or gradient that is not finite, naming the rows of that step; the adapter
        keeps the values it had before it.
        """
        if self.step == 0 and self.held_out:
            watcher.evaluated(0, self.evaluate())
        if self.done:
            return True
        self.engine.model.train()
        eval_steps = self.settings.eval_steps or self.epoch_steps
        for batches, wait in self._ahead():
            loss, lr, grad_norm = self._taken(batches, wait)
            watcher.stepped(self.step, loss)
            if self.step == 1 or self.step % self.settings.log_steps == 0 or self.step == self.total:
                watcher.logged(self._line(lr, grad_norm))
            if self.held_out and (self.step % eval_steps == 0 or self.step == self.total):
                self._held(watcher)
            stopping = watcher.stop() and not self.done
            if stopping or self.step % self.settings.save_steps == 0 or self.done:
                watcher.checkpoint(self.step, self.state())
            if stopping or self.done:
                return not stopping
        return True

    def _taken(self, batches: Sequence[PackedBatch], wait: float) -> tuple[float, float, float]:
        """Take a step: its loss, learning rate and gradient norm."""
        begun = time.perf_counter()
        settings = self.settings
        lr = learning_rate(
            self.step, self.total, peak=settings.lr, warmup=settings.warmup_steps, schedule=settings.schedule
        )
        loss, grad_norm = self._step(batches, lr)
        self.step += 1
        self.window.loss += loss
        self.window.steps += 1
        self.window.tokens += sum(len(batch.tokens) for batch in batches)
        self.window.seconds += wait + time.perf_counter() - begun
        self.window.waited += wait
        return loss, lr, grad_norm

    def _line(self, lr: float, grad_norm: float) -> StepReport:
        """The log's line over the window, which begins anew."""
        window, self.window = self.window, Window()
        return StepReport(
            self.step,
            epoch=self.step / self.epoch_steps,
            loss=window.loss / window.steps,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_s=window.tokens / window.seconds,
            data_wait=window.waited / window.seconds,
            seconds=window.seconds,
        )

    def _held(self, watcher: Watcher) -> None:
        """An eval loss, and whether it is the best so far."""
        loss = self.evaluate()
        watcher.evaluated(self.step, loss)
        if loss < self.best_loss:
            self.best_step, self.best_loss, self.worse = self.step, loss, 0
            watcher.best(self.step)
        else:
            self.worse += 1

    def evaluate(self) -> float:
        """The mean loss over the held-out labels, without dropout."""
        self.engine.model.eval()
        with torch.no_grad():
            batches = passes(self.held_out, self.settings.pass_tokens)
            loss = sum(self.engine.loss(batch).item() for batch in batches)
        self.engine.model.train()
        return loss

    def _step(self, batches: Sequence[PackedBatch], lr: float) -> tuple[float, float]:
        losses = []
        for batch in batches:
            loss = self.engine.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        mean, grad_norm = torch.stack([torch.stack(losses).sum(), norm]).tolist()  # the step's one read-back
        if not (math.isfinite(mean) and math.isfinite(grad_norm)):
            raise _not_finite(self.step + 1, mean, grad_norm, batches)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean, grad_norm

    def _ahead(self) -> Iterator[tuple[list[PackedBatch], float]]:
        """The batches of every step left, packed one step ahead on a thread, and the seconds waited for each."""
        with ThreadPoolExecutor(1) as pool:
            packing = pool.submit(self._packed, self.step)
            for step in range(self.step, self.total):
                begun = time.perf_counter()
                batches = packing.result()
                wait = time.perf_counter() - begun
                if step + 1 < self.total:
                    packing = pool.submit(self._packed, step + 1)
                yield batches, wait

    def _packed(self, step: int) -> list[PackedBatch]:
        chosen = members(step, len(self.examples), self.per_step, self.seed)
        return passes([self.examples[i] for i in chosen], self.settings.pass_tokens)


def _not_finite(step: int, loss: float, norm: float, batches: Sequence[PackedBatch]) -> LorgnetteError:
    rows = [example for batch in batches for example in batch.examples]
    named = "; ".join(example.where for example in rows[:ROWS_NAMED])
    more = f"; and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return LorgnetteError(
        f"step {step}: loss {loss}, gradient norm {norm} — not finite, the step was not taken",
        where=f"its rows: {named}{more}",
        remedy="look at these rows with `lorgnette check`; a lower train.lr or dtype=float32 may help",
    )
