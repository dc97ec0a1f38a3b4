"""The training loop, to be read from top to bottom.

One step: pack its examples into micro-batches, run each forward and backward, clip the gradient, update with AdamW.
The loss of a step is the mean over its labels, whatever the number of micro-batches.

Several ranks share the examples of a step. One all-reduce sums their gradients and what else they must know of each
other (step_counts.py), so that all take the same step. Whatever decides what comes next is the same on every rank:
losses, the stop of one rank, the size of micro-batches.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lorgnette.config import TrainSettings
from lorgnette.distributed import TAIL, World
from lorgnette.engine.base import Engine
from lorgnette.errors import LorgnetteError
from lorgnette.features.pipeline import FeaturePipeline
from lorgnette.processing.packing import split_into_microbatches
from lorgnette.processing.rank_shares import split_between_ranks
from lorgnette.training.auto_steps import AutoSteps, compute_eval_steps
from lorgnette.training.lr_schedule import compute_learning_rate
from lorgnette.training.optimizer import MIN_LOSS_SCALE, Optimizer
from lorgnette.training.random_state import get_rng_state, seed_rank
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.step_counts import LOSS, RankCounts, StepCounts
from lorgnette.types import Encoded, ImageGrid, PackedBatch

MAX_ROWS_IN_ERROR = 16
MAX_TOKENS = "max_tokens_per_microbatch"
"""Its key in a checkpoint: a resumed run keeps it, since PEFT draws a dropout mask for every micro-batch."""


class NotFiniteError(LorgnetteError):
    """A loss or gradient that is not finite. rows: of the step, as indices of the examples."""

    def __init__(self, message: str, rows: Sequence[int], *, where: str, hint: str) -> None:
        super().__init__(message, where=where, hint=hint)
        self.rows = tuple(rows)


@dataclass(frozen=True, slots=True)
class StepReport:
    """One training record of the log.

    step counts finished steps; loss is the mean since the record before; learning_rate and grad_norm (before clipping)
    are of the last step; data_wait is the fraction of the time spent waiting for batches, on the rank that waits most.
    tokens_per_s is of all ranks; imbalance is the fraction by which the rank with the most tokens of a step has more
    than the mean.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    data_wait: float
    seconds: float
    ranks: int = 1
    imbalance: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """For the log. One rank says nothing about ranks."""
        record = asdict(self)
        return record if self.ranks > 1 else {k: v for k, v in record.items() if k not in ("ranks", "imbalance")}


@dataclass(slots=True)
class RunningStats:
    """Sums since the last log record, as of StepCounts. seconds: of the steps, without evaluation and saving.

    busiest_tokens: times the number of ranks, which may change where a run goes on.
    """

    total_loss: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    busiest_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A launched step.

    result: what `Optimizer.step` returned, and the tail, being copied to the host until the event `copy_done`.
    """

    step: int
    learning_rate: float
    result: Tensor
    copy_done: torch.Event | None


class Callbacks(Protocol):
    """What the trainer calls during a run, on every rank."""

    def on_step_end(self, step: int, loss: float) -> None: ...
    def on_log(self, report: StepReport) -> None: ...
    def on_evaluate(self, step: int, loss: float) -> float:
        """Returns the score that selects the best step, lower is better: the eval loss, or a metric.

        Of several ranks that of rank 0 selects.
        """

    def on_new_best(self, step: int) -> None: ...
    def on_save(self, step: int, state: dict[str, Any]) -> None: ...
    def on_skipped_step(self, step: int, loss_scale: float) -> None:
        """The gradient of this step overflowed, so it changed nothing. loss_scale: of the next step."""

    def on_out_of_memory(self, step: int, max_tokens: int, rank: int) -> None:
        """The rank repeats the step in micro-batches of at most max_tokens, and all ranks take later steps so."""

    def should_stop(self) -> bool: ...


class Trainer:
    """A run between two steps: optimizer, counters, running statistics. Every rank has one."""

    def __init__(
        self,
        engine: Engine,
        sampler: BatchSampler,
        held_out: Sequence[Encoded],
        settings: TrainSettings,
        max_tokens_per_microbatch: int | None = None,
        world: World = World(),
        pipeline: FeaturePipeline | None = None,
    ) -> None:
        """max_tokens_per_microbatch: fewer than the settings', if memory is short. pipeline: makes image features that
        are not there before the first step."""
        self.engine, self.sampler, self.held_out, self.settings = engine, sampler, held_out, settings
        self.world, self._pipeline = world, pipeline
        self.steps_per_epoch = sampler.steps_per_epoch
        self.auto_steps = _build_auto_steps(sampler, settings)
        self._flat_grad = engine.flat_grad
        self.optimizer = Optimizer(engine.parameters, settings, engine.loss_scale)
        self.max_tokens_per_microbatch = max_tokens_per_microbatch or settings.max_tokens_per_microbatch
        self.step = 0
        self.stats = RunningStats()
        self.best_step, self.best_score, self.num_evals_since_best = 0, math.inf, 0
        self._pending: deque[PendingStep] = deque()
        self._is_stopping = False
        self._last_time = time.perf_counter()
        self._max_pending = 1 if engine.parameters[0].is_cuda else 0
        """Steps the host may be ahead: while it reads a step's loss, the device computes the next."""

    @property
    def total_steps(self) -> int:
        """With `train.epochs=auto` at most, until the losses decide."""
        return self.auto_steps.total_steps if self.auto_steps else self.sampler.total_steps

    def is_done(self) -> bool:
        """All steps are done, or `early_stopping_patience` evaluations have passed without a new best."""
        patience = self.settings.early_stopping_patience
        return self.step == self.total_steps or (patience is not None and self.num_evals_since_best >= patience)

    def state_dict(self, *, has_optimizer: bool = True) -> dict[str, Any]:
        """What a checkpoint holds besides the adapter's weights and the random state. The same on all ranks.

        has_optimizer: if not, the caller adds the optimizer's `state_dict`, before another step.
        """
        return {
            "step": self.step,
            **({"optimizer": self.optimizer.state_dict()} if has_optimizer else {}),
            "stats": asdict(self.stats),
            "best": [self.best_step, self.best_score, self.num_evals_since_best],
            "losses": list(self.auto_steps.losses) if self.auto_steps else [],
            MAX_TOKENS: self.max_tokens_per_microbatch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises an AttributeError, LookupError, TypeError, ValueError or RuntimeError for the state of another run."""
        if self.auto_steps:
            for loss, num_labels in state["losses"]:
                self.auto_steps.record_loss(loss, num_labels)
        if state["step"] not in range(self.total_steps + 1):
            raise ValueError(f"it is of step {state['step']}, and the run has {self.total_steps}")
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.stats = RunningStats(**state["stats"])
        self.best_step, self.best_score, self.num_evals_since_best = state["best"]

    def gather_state(self, *, has_optimizer: bool = True) -> dict[str, Any]:
        """The state of a checkpoint, with the random state of every rank as "random". All ranks call it.

        has_optimizer: as of `state_dict`.

        Raises LorgnetteError if their parameters are not the same.
        """
        self._check_parameters()
        state = self.state_dict(has_optimizer=has_optimizer)
        return {**state, "random": self.world.gather_objects(get_rng_state())}

    def train(self, callbacks: Callbacks) -> bool:
        """Train until `is_done`; the caller saves the last step.

        Returns False if `callbacks.should_stop` of any rank ended the run early, after a checkpoint. Raises
        LorgnetteError for a loss or gradient that is not finite and names the rows of that step; the parameters keep
        their values from before it. In float16 a step whose gradient overflowed is skipped and reported instead. Raises
        LorgnetteError, after a checkpoint, for an image that only now turns out to be damaged, and for a process that
        decodes and has ended.
        """
        if self.step == 0 and self.world.size > 1:
            seed_rank(self.sampler.seed, 0, self.world)
        # The untrained adapter's eval loss is the baseline.
        if self.step == 0 and self.held_out:
            self._evaluate(callbacks)
        if self.is_done():
            return True

        default = compute_eval_steps(self.sampler.total_steps) if self.auto_steps else self.steps_per_epoch
        eval_steps = self.settings.eval_steps or default
        save_steps = self.settings.save_steps or self.steps_per_epoch
        self._last_time = time.perf_counter()
        for microbatches, pack_seconds in self._prefetch():
            wait_seconds = pack_seconds + self._prepare_images(microbatches, callbacks)

            # Launch forward, backward and update; on CUDA the host does not wait for them.
            self._launch_step(microbatches, wait_seconds, callbacks)

            # Report the finished steps: all of them before anything that reads the weights.
            is_last = self.step == self.total_steps
            is_evaluating = bool(self.held_out) and (self.step % eval_steps == 0 or is_last)
            is_saving = self._should_stop(callbacks) or self.step % save_steps == 0
            self._drain(callbacks, 0 if is_evaluating or is_saving or is_last else self._max_pending)

            # Evaluate. Early stopping may end the run here.
            if is_evaluating:
                self._evaluate_and_track_best(callbacks)
            if self.is_done():
                self._drain(callbacks, 0)
                return True

            # Save. should_stop is asked again: Ctrl-C may have come during the evaluation.
            is_stopping = self._should_stop(callbacks)
            if is_stopping or is_saving:
                self._drain(callbacks, 0)
                callbacks.on_save(self.step, self.gather_state())
            if is_stopping:
                return False

            # Seconds of evaluation and saving are not the next step's.
            if is_evaluating or is_saving:
                self._last_time = time.perf_counter()
        return True

    def evaluate(self) -> float:
        """The mean loss over the held-out labels, without dropout. The ranks share the micro-batches."""
        num_tokens = sum(len(encoded.input_ids) for encoded in self.held_out)
        max_tokens = min(self.max_tokens_per_microbatch, math.ceil(num_tokens / self.world.size))
        sharing = self.engine.eval_prefix_sharing
        batches = split_into_microbatches(self.held_out, max_tokens, prefix_sharing=sharing)
        shares = split_between_ranks([len(batch.input_ids) for batch in batches], self.world.size)
        with self.world.status.phase("evaluation"):
            loss = sum(self.engine.compute_loss(batches[i]).item() for i in shares[self.world.rank])
        self._run_empty_passes(max(map(len, shares)) - len(shares[self.world.rank]), backward=False)
        losses: list[float] = self.world.gather_objects(loss)
        return sum(losses)

    def _prepare_images(self, microbatches: Sequence[PackedBatch], callbacks: Callbacks) -> float:
        """Make the features that the step lacks; the seconds waited for pixels. They are launched before the step."""
        if self._pipeline is None:
            return 0.0
        before = self._pipeline.wait_seconds
        try:
            errors = self._pipeline.prepare(grid for batch in microbatches for grid in batch.grids)
            if errors:
                raise self._build_image_error(errors)
        except LorgnetteError:  # also of a process that decodes: the steps until here are good
            self._drain(callbacks, 0)
            if self.step > 0:
                callbacks.on_save(self.step, self.gather_state())
            raise
        return self._pipeline.wait_seconds - before

    def _launch_step(self, microbatches: Sequence[PackedBatch], wait_seconds: float, callbacks: Callbacks) -> None:
        """Launch forward, backward, all-reduce and update.

        Out of memory, the rank repeats its part in smaller micro-batches, which add up to the same gradient; the others
        wait for it in the all-reduce.
        """
        status = self.world.status
        status.start_step(self.step + 1)
        learning_rate, is_out_of_memory = self._compute_learning_rate(), False
        shards = self.engine.shards
        is_collective = shards is not None and shards.is_collective
        most_passes = max(self.world.gather_objects(len(microbatches))) if is_collective else 0
        with status.phase("gradients"):
            while (loss := self._try_backward(microbatches)) is None:
                microbatches, is_out_of_memory = self._halve_microbatches(microbatches, callbacks), True
        self._run_empty_passes(most_passes - len(microbatches), backward=True)

        # Sum gradients, losses and counts over the ranks.
        counts = RankCounts(
            num_labels=sum(len(batch.targets) for batch in microbatches),
            num_tokens=sum(len(batch.input_ids) for batch in microbatches),
            wait_seconds=wait_seconds, is_stopping=callbacks.should_stop(), is_out_of_memory=is_out_of_memory,
        )  # fmt: skip
        tail = self._flat_grad[-TAIL:]
        counts.write(tail, loss, self.world.rank)
        with status.phase("all-reduce"):
            self.world.all_reduce(self._flat_grad)

        # Update. The tail of the next step replaces this one.
        result = torch.cat([self.optimizer.step(tail[LOSS], learning_rate), tail])
        self.engine.sync_weights()
        self.step += 1
        copy_done = None
        if result.is_cuda:
            result = result.to("cpu", non_blocking=True)
            copy_done = torch.cuda.current_stream().record_event()
        self._pending.append(PendingStep(self.step, learning_rate, result, copy_done))

    def _should_stop(self, callbacks: Callbacks) -> bool:
        """Whether to stop after this step. Several ranks stop when all know that one was asked to."""
        return callbacks.should_stop() if self.world.size == 1 else self._is_stopping

    def _compute_learning_rate(self) -> float:
        if self.auto_steps:
            return self.settings.learning_rate * self.auto_steps.compute_rate_factor(self.step)
        return compute_learning_rate(self.step, self.total_steps, self.settings)

    def _try_backward(self, microbatches: Sequence[PackedBatch]) -> Tensor | None:
        """The loss of the rank's examples; None if out of memory.

        Returning drops the traceback, and with it the tensors it holds.
        """
        if not microbatches:
            return self._flat_grad.new_zeros(())
        try:
            return torch.stack([self.engine.backward(batch) for batch in microbatches]).sum()
        except torch.OutOfMemoryError:
            return None

    def _run_empty_passes(self, count: int, *, backward: bool) -> None:
        """Where the model is sharded, as many passes as this rank has fewer than another."""
        if self.engine.shards is not None:
            for _ in range(count):
                self.engine.shards.run_empty_pass(backward=backward)

    def _halve_microbatches(self, microbatches: Sequence[PackedBatch], callbacks: Callbacks) -> list[PackedBatch]:
        """The same examples in micro-batches of half the tokens. Raises torch.OutOfMemoryError for single examples."""
        longest = max(len(batch.input_ids) for batch in microbatches)
        if all(len(batch.examples) == 1 for batch in microbatches):
            raise torch.OutOfMemoryError(f"a micro-batch of one example, {longest} tokens, does not fit")
        torch.cuda.empty_cache()
        self._flat_grad.zero_()
        self.max_tokens_per_microbatch = longest // 2
        callbacks.on_out_of_memory(self.step + 1, self.max_tokens_per_microbatch, self.world.rank)
        return self._pack_step(self.step)

    def _take_smallest_microbatches(self, step: int, callbacks: Callbacks) -> None:
        """After a rank ran out of memory in `step`: let all ranks take the size of the one with the smallest."""
        sizes = self.world.gather_objects(self.max_tokens_per_microbatch)
        smallest = min(sizes)
        if smallest < self.max_tokens_per_microbatch:
            self.max_tokens_per_microbatch = smallest
            callbacks.on_out_of_memory(step, smallest, sizes.index(smallest))

    def _drain(self, callbacks: Callbacks, max_pending: int) -> None:
        """Report launched steps until at most `max_pending` are left."""
        while len(self._pending) > max_pending:
            pending = self._pending.popleft()
            if pending.copy_done is not None:
                with self.world.status.waiting():  # for the ranks that have not launched their all-reduce
                    pending.copy_done.synchronize()
            values = pending.result.tolist()
            (loss, norm, *loss_scale), counts = values[:-TAIL], StepCounts.from_tail(values[-TAIL:], self.world.size)
            is_skipped = bool(loss_scale) and not math.isfinite(norm) and loss_scale[0] >= MIN_LOSS_SCALE
            if not math.isfinite(loss) or not (math.isfinite(norm) or is_skipped):
                self.step = pending.step - 1
                raise self._build_not_finite_error(loss, norm)
            if counts.is_out_of_memory:
                self._take_smallest_microbatches(pending.step, callbacks)
            self._is_stopping |= counts.is_stopping
            previous_time, self._last_time = self._last_time, time.perf_counter()
            self.stats.seconds += self._last_time - previous_time
            self.stats.total_loss += loss
            self.stats.num_steps += 1
            self.stats.num_tokens += counts.num_tokens
            self.stats.busiest_tokens += counts.busiest_tokens * self.world.size
            self.stats.wait_seconds += counts.wait_seconds
            if self.auto_steps:
                self.auto_steps.record_loss(loss, counts.num_labels)
            if is_skipped:
                callbacks.on_skipped_step(pending.step, loss_scale[0])
            with self.world.status.phase("callbacks"):
                callbacks.on_step_end(pending.step, loss)
            if pending.step in (1, self.total_steps) or pending.step % self.settings.logging_steps == 0:
                stats, self.stats = self.stats, RunningStats()
                report = StepReport(
                    pending.step,
                    epoch=pending.step / self.steps_per_epoch,
                    loss=stats.total_loss / stats.num_steps,
                    learning_rate=pending.learning_rate,
                    grad_norm=norm,
                    tokens_per_s=stats.num_tokens / stats.seconds,
                    data_wait=stats.wait_seconds / stats.seconds,
                    seconds=stats.seconds,
                    ranks=self.world.size,
                    imbalance=stats.busiest_tokens / stats.num_tokens - 1,
                )
                callbacks.on_log(report)

    def _evaluate(self, callbacks: Callbacks) -> float:
        """Rank 0's score, on every rank. They also learn whether one of them was asked to stop."""
        score = callbacks.on_evaluate(self.step, self.evaluate())
        answers = self.world.gather_objects((score, callbacks.should_stop()))
        self._is_stopping |= any(is_stopping for _, is_stopping in answers)
        return float(answers[0][0])

    def _evaluate_and_track_best(self, callbacks: Callbacks) -> None:
        score = self._evaluate(callbacks)
        if score < self.best_score:
            self.best_step, self.best_score, self.num_evals_since_best = self.step, score, 0
            callbacks.on_new_best(self.step)
        else:
            self.num_evals_since_best += 1

    def _prefetch(self) -> Iterator[tuple[list[PackedBatch], float]]:
        """(micro-batches, seconds waited for them) of every step left; a thread packs one step ahead."""
        with ThreadPoolExecutor(1) as pool:
            step = self.step
            packing, max_tokens = pool.submit(self._pack_step, step), self.max_tokens_per_microbatch
            while step < self.total_steps:
                start = time.perf_counter()
                microbatches = packing.result()
                if self.max_tokens_per_microbatch < max_tokens:  # lowered since, after running out of memory
                    microbatches = self._pack_step(step)
                wait_seconds = time.perf_counter() - start
                if step + 1 < self.total_steps:
                    packing, max_tokens = pool.submit(self._pack_step, step + 1), self.max_tokens_per_microbatch
                yield microbatches, wait_seconds
                step += 1

    def _pack_step(self, step: int) -> list[PackedBatch]:
        return self.sampler.pack_step(
            step, self.max_tokens_per_microbatch, prefix_sharing=self.engine.prefix_sharing,
            rank=self.world.rank, num_ranks=self.world.size,
        )  # fmt: skip

    def _check_parameters(self) -> None:
        """Compare a sum of the parameters' bits. Raises LorgnetteError, on every rank, that names those that differ."""
        if self.world.size == 1:
            return
        # In parts: on a GPU the sum of 32-bit integers in 64 bits needs a copy in 64 bits.
        flat = (p.detach().view(torch.int32).ravel() for p in self.engine.parameters)
        bits = sum(int(part.sum(dtype=torch.int64)) for values in flat for part in torch.split(values, 2**22))
        sums = self.world.gather_objects((bits, self.world.machine))
        [(most_common, _)] = Counter(value for value, _ in sums).most_common(1)
        others = [f"rank {rank} on {machine}" for rank, (value, machine) in enumerate(sums) if value != most_common]
        if others:
            message = f"step {self.step}: the adapter is not the same on all ranks, so nothing was saved"
            hint = "resume from the checkpoint before; if it happens again, test the memory of these GPUs"
            raise LorgnetteError(message, where=f"other numbers than most ranks: {', '.join(others)}", hint=hint)

    def _build_image_error(self, errors: Mapping[ImageGrid, LorgnetteError]) -> LorgnetteError:
        """Of the first of these images that cannot be decoded. It names the image and its row in this step."""
        grid, error = next(iter(errors.items()))
        examples = (self.sampler.examples[i] for i in self.sampler.select(self.step))
        row = next(encoded.example.where for encoded in examples if grid in encoded.grids)
        hint = "if it was changed since the start, restore it and resume; else remove its rows and start a new run"
        return LorgnetteError(f"step {self.step + 1}: {error.message} ({grid.image.path})", where=row, hint=hint)

    def _build_not_finite_error(self, loss: float, norm: float) -> NotFiniteError:
        indices = self.sampler.select(self.step)
        rows = [self.sampler.examples[i].example.where for i in indices]
        more = f"; and {len(rows) - MAX_ROWS_IN_ERROR} more" if len(rows) > MAX_ROWS_IN_ERROR else ""
        return NotFiniteError(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}: not finite, the step was skipped",
            indices,
            where=f"its rows: {'; '.join(rows[:MAX_ROWS_IN_ERROR])}{more}",
            hint="check these rows with `lorgnette check`; try a lower train.learning_rate or dtype=float32",
        )


def _build_auto_steps(sampler: BatchSampler, settings: TrainSettings) -> AutoSteps | None:
    if settings.epochs != "auto":
        return None
    warmup_steps = settings.count_warmup_steps(sampler.total_steps)
    return AutoSteps(sampler.steps_per_epoch, warmup_steps=warmup_steps, max_steps=settings.max_steps)
