"""The trainer with an engine of one matrix: the order of callbacks, and that micro-batches do not change a step.

(parity/test_trainer.py compares its steps with transformers' Trainer.)
"""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lorgnette.config import TrainSettings
from lorgnette.distributed import World, allocate_flat_grad
from lorgnette.errors import LorgnetteError
from lorgnette.training.random_state import set_rng_state
from lorgnette.training.sampler import BatchSampler, select_examples
from lorgnette.training.trainer import NotFiniteError, StepReport, Trainer
from lorgnette.types import IGNORE_INDEX, Encoded, Example, PackedBatch
from tests.ranks import run_ranks

VOCAB = 8


class BigramEngine:
    """Predicts the next token from the current token's row of a matrix."""

    dtype = torch.float32
    loss_scale: Tensor | None = None
    prefix_sharing = False
    eval_prefix_sharing = False
    shards = None

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB))
        self.parameters = [self.table]
        self.flat_grad = allocate_flat_grad(self.parameters)
        self.dropout = nn.Dropout(0.2)
        self.spoil: Callable[[PackedBatch, Tensor], Tensor] = lambda batch, loss: loss
        self.max_tokens: int | None = None
        self.num_syncs = 0

    def backward(self, batch: PackedBatch) -> Tensor:
        if self.max_tokens is not None and len(batch.input_ids) > self.max_tokens:
            raise torch.OutOfMemoryError
        self.dropout.train()
        loss = self.spoil(batch, self._forward(batch))
        (loss if self.loss_scale is None else loss * self.loss_scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def compute_loss(self, batch: PackedBatch) -> Tensor:
        self.dropout.eval()
        return self._forward(batch).detach()

    def sync_weights(self) -> None:
        self.num_syncs += 1

    def _forward(self, batch: PackedBatch) -> Tensor:
        ids = torch.from_numpy(batch.input_ids[batch.label_indices]).long()
        losses = cross_entropy(self.dropout(self.table[ids]), torch.from_numpy(batch.targets).long(), reduction="none")
        return (losses * torch.from_numpy(batch.label_weights)).sum()


class RecordingCallbacks:
    """Records the calls in order."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.losses: list[float] = []
        self.reports: list[StepReport] = []
        self.best_steps: list[int] = []
        self.loss_scales: list[float] = []
        self.eval_losses: list[float] = []
        self.ranks_out_of_memory: list[int] = []
        self.states: dict[int, bytes] = {}
        self.stop_at = stop_at
        self.score: Callable[[int], float] | None = None

    def on_step_end(self, step: int, loss: float) -> None:
        self.events.append(("step", step))
        self.losses.append(loss)

    def on_log(self, report: StepReport) -> None:
        self.events.append(("log", report.step))
        self.reports.append(report)

    def on_evaluate(self, step: int, loss: float) -> float:
        self.events.append(("evaluate", step))
        self.eval_losses.append(loss)
        return loss if self.score is None else self.score(step)

    def on_new_best(self, step: int) -> None:
        self.best_steps.append(step)

    def on_skipped_step(self, step: int, loss_scale: float) -> None:
        self.events.append(("skipped", step))
        self.loss_scales.append(loss_scale)

    def on_out_of_memory(self, step: int, max_tokens: int, rank: int) -> None:
        self.events.append(("out of memory", step))
        self.ranks_out_of_memory.append(rank)

    def on_save(self, step: int, state: dict[str, Any]) -> None:
        self.events.append(("save", step))
        file = io.BytesIO()
        torch.save(state, file)
        self.states[step] = file.getvalue()

    def should_stop(self) -> bool:
        return self.stop_at is not None and len(self.losses) >= self.stop_at

    def steps(self, kind: str) -> list[int]:
        return [step for event, step in self.events if event == kind]


def make_example(number: int) -> Encoded:
    ids = np.random.default_rng(number).integers(0, VOCAB, 3 + number % 5).astype(np.int32)
    labels = ids.copy()
    labels[0] = IGNORE_INDEX
    positions = np.zeros((3, len(ids)), np.int32)
    return Encoded(Example(str(number), (), Path("x.csv"), number), ids, labels, positions, (), ())


EXAMPLES = [make_example(i) for i in range(10)]
HELD_OUT = [make_example(i) for i in range(20, 23)]
SETTINGS = TrainSettings(epochs=2, batch_size=4, learning_rate=0.1, logging_steps=2, save_steps=4, max_grad_norm=10)


def change(**settings: Any) -> TrainSettings:
    return SETTINGS.model_copy(update=settings)


def build_trainer(
    engine: BigramEngine,
    settings: TrainSettings = SETTINGS,
    *,
    examples: Sequence[Encoded] = EXAMPLES,
    held_out: Sequence[Encoded] = (),
    seed: int = 3,
) -> Trainer:
    sampler = BatchSampler(examples, settings, seed, group_by_image=False)
    return Trainer(engine, sampler, held_out, settings)


def train(
    settings: TrainSettings = SETTINGS, *, held_out: Sequence[Encoded] = (), stop_at: int | None = None
) -> tuple[RecordingCallbacks, BigramEngine]:
    engine, callbacks = BigramEngine(), RecordingCallbacks(stop_at)
    torch.manual_seed(1)
    is_finished = build_trainer(engine, settings, held_out=held_out).train(callbacks)
    assert is_finished is (stop_at is None)
    return callbacks, engine


def train_without_dropout(
    settings: TrainSettings, max_tokens: int | None = None
) -> tuple[RecordingCallbacks, BigramEngine]:
    engine, callbacks = BigramEngine(), RecordingCallbacks()
    engine.dropout.p, engine.max_tokens = 0.0, max_tokens
    build_trainer(engine, settings).train(callbacks)
    return callbacks, engine


def test_callbacks_and_their_order() -> None:
    """Ten examples by four: three steps per epoch, two epochs."""
    callbacks, _ = train(held_out=HELD_OUT)
    assert callbacks.events == [
        ("evaluate", 0),
        ("step", 1), ("log", 1),
        ("step", 2), ("log", 2),
        ("step", 3), ("evaluate", 3),
        ("step", 4), ("log", 4), ("save", 4),
        ("step", 5),
        ("step", 6), ("log", 6), ("evaluate", 6),
    ]  # fmt: skip


def test_evaluation_needs_held_out_examples_and_follows_eval_steps() -> None:
    assert train(change(eval_steps=2), held_out=HELD_OUT)[0].steps("evaluate") == [0, 2, 4, 6]
    assert train()[0].steps("evaluate") == []


def test_each_epoch_is_saved_without_a_number_of_steps() -> None:
    assert train(change(epochs=3, save_steps=None))[0].steps("save") == [3, 6]  # the caller saves the last step


def test_a_log_record_covers_the_steps_since_the_one_before() -> None:
    callbacks, _ = train()
    losses = callbacks.losses
    means = [losses[0], losses[1], sum(losses[2:4]) / 2, sum(losses[4:6]) / 2]
    assert [report.loss for report in callbacks.reports] == pytest.approx(means)
    assert [report.epoch for report in callbacks.reports] == pytest.approx([1 / 3, 2 / 3, 4 / 3, 2])
    rates = [report.learning_rate for report in callbacks.reports]
    assert rates == pytest.approx([0.1, 0.1 * 5 / 6, 0.1 * 3 / 6, 0.1 / 6])
    for report in callbacks.reports:
        assert report.grad_norm > 0
        assert report.tokens_per_s > 0
        assert 0 <= report.data_wait <= 1


def test_the_last_step_is_the_smaller_of_epochs_and_max_steps() -> None:
    for max_steps, last in ((1, 1), (5, 5), (99, 6)):
        callbacks, _ = train(change(max_steps=max_steps, save_steps=100, logging_steps=100))
        assert callbacks.steps("step") == list(range(1, last + 1))
        assert callbacks.steps("save") == []  # the caller saves the last step
        assert callbacks.steps("log") == sorted({1, last})


@pytest.mark.parametrize("max_tokens", [1, 9, 13])
def test_the_size_of_micro_batches_does_not_matter(max_tokens: int) -> None:
    whole, engine = train_without_dropout(SETTINGS)
    split, split_engine = train_without_dropout(change(max_tokens_per_microbatch=max_tokens))
    assert split.losses == pytest.approx(whole.losses, abs=1e-6)
    torch.testing.assert_close(split_engine.table, engine.table, atol=1e-5, rtol=0)


def test_a_step_that_runs_out_of_memory_is_repeated_in_smaller_micro_batches() -> None:
    (whole, engine), (split, split_engine) = train_without_dropout(SETTINGS), train_without_dropout(SETTINGS, 9)
    assert split.losses == pytest.approx(whole.losses, abs=1e-6)
    torch.testing.assert_close(split_engine.table, engine.table, atol=1e-5, rtol=0)
    assert split.steps("out of memory") == [1], "later steps keep the smaller micro-batches"
    assert engine.num_syncs == split_engine.num_syncs == 6
    with pytest.raises(torch.OutOfMemoryError, match="a micro-batch of one example"):
        train_without_dropout(SETTINGS, 1)


def test_the_eval_loss_is_a_mean_over_labels_without_dropout() -> None:
    engine = BigramEngine()
    trainer = build_trainer(engine, held_out=HELD_OUT)
    pairs = [(a, b) for e in HELD_OUT for a, b in zip(e.input_ids[:-1], e.input_ids[1:], strict=True)]
    ids, targets = (torch.tensor(np.array(side)).long() for side in zip(*pairs, strict=True))
    expected = cross_entropy(engine.table[ids], targets).item()
    assert trainer.evaluate() == trainer.evaluate() == pytest.approx(expected, abs=1e-6)
    split = build_trainer(engine, change(max_tokens_per_microbatch=1), held_out=HELD_OUT)
    assert split.evaluate() == pytest.approx(expected, abs=1e-6)
    assert not engine.flat_grad.any()


def test_evaluation_does_not_change_the_training() -> None:
    assert train(change(eval_steps=1), held_out=HELD_OUT)[0].losses == train()[0].losses


def test_the_seed_orders_the_examples() -> None:
    def compute_losses(seed: int) -> list[float]:
        callbacks = RecordingCallbacks()
        torch.manual_seed(1)
        build_trainer(BigramEngine(), seed=seed).train(callbacks)
        return callbacks.losses

    assert compute_losses(3) == compute_losses(3) != compute_losses(4)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(stop_at: int) -> None:
    whole, engine = train()
    stopped, resumed_engine = train(stop_at=stop_at)
    assert stopped.steps("step") == list(range(1, stop_at + 1))
    assert stopped.events[-1] == ("save", stop_at)
    random = torch.get_rng_state()
    trainer = build_trainer(resumed_engine)
    trainer.load_state_dict(torch.load(io.BytesIO(stopped.states[stop_at]), weights_only=True))
    torch.set_rng_state(random)
    resumed = RecordingCallbacks()
    assert trainer.train(resumed)
    assert stopped.losses + resumed.losses == whole.losses
    assert torch.equal(resumed_engine.table, engine.table)
    logged = [(r.step, r.loss, r.learning_rate, r.grad_norm) for r in stopped.reports + resumed.reports]
    assert logged == [(r.step, r.loss, r.learning_rate, r.grad_norm) for r in whole.reports]


def test_a_stop_at_the_last_step_is_the_end() -> None:
    callbacks = RecordingCallbacks(stop_at=6)
    assert build_trainer(BigramEngine()).train(callbacks)
    assert callbacks.steps("save") == [4]


def test_resuming_a_finished_run_does_nothing() -> None:
    whole, engine = train(held_out=HELD_OUT)
    before = engine.table.detach().clone()
    trainer = build_trainer(engine, held_out=HELD_OUT)
    trainer.load_state_dict(torch.load(io.BytesIO(whole.states[4]), weights_only=True))
    trainer.step = 6
    callbacks = RecordingCallbacks()
    assert trainer.train(callbacks)
    assert callbacks.events == []
    assert torch.equal(engine.table, before)


def add_infinite_gradient(loss: Tensor) -> Tensor:
    """A finite loss with an infinite gradient: the slope of √0."""
    return loss + (loss - loss.detach()).abs().sqrt()


@pytest.mark.parametrize(
    "spoil", [lambda loss: loss * float("nan"), lambda loss: loss + float("inf"), add_infinite_gradient],
    ids=["nan", "loss", "gradient"],
)  # fmt: skip
def test_a_step_that_is_not_finite_stops_the_run_and_changes_nothing(spoil: Callable[[Tensor], Tensor]) -> None:
    engine, callbacks = BigramEngine(), RecordingCallbacks()
    tables: list[Tensor] = []

    def spoil_third_step(batch: PackedBatch, loss: Tensor) -> Tensor:
        tables.append(engine.table.detach().clone())
        return spoil(loss) if len(callbacks.losses) == 2 else loss

    engine.spoil = spoil_third_step
    with pytest.raises(NotFiniteError, match=r"step 3: loss .* not finite, the step was skipped") as caught:
        build_trainer(engine, change(save_steps=1)).train(callbacks)
    assert [*caught.value.rows] == select_examples(2, 10, 4, 3)
    assert torch.equal(engine.table, tables[-1])
    assert callbacks.steps("step") == callbacks.steps("save") == [1, 2]
    earlier = select_examples(0, 10, 4, 3) + select_examples(1, 10, 4, 3)
    rows = set(range(10)) - {int(EXAMPLES[i].example.id) for i in earlier}
    assert caught.value.where is not None
    assert caught.value.where.startswith("its rows: x.csv, row ")
    assert {int(part.rsplit(" ", 1)[1]) for part in caught.value.where.split("; ")} == rows
    assert "train.learning_rate" in str(caught.value.hint)


def build_float16_engine() -> BigramEngine:
    """Its gradients overflow in the second step, and in the fourth."""
    engine, num_batches = BigramEngine(), 0
    engine.loss_scale = torch.tensor(2.0**16)

    def spoil(batch: PackedBatch, loss: Tensor) -> Tensor:
        nonlocal num_batches
        num_batches += 1
        return add_infinite_gradient(loss) if num_batches in (2, 4) else loss

    engine.spoil = spoil
    return engine


@pytest.mark.parametrize("max_pending", [0, 1])
def test_a_gradient_that_overflows_in_float16_skips_its_step(max_pending: int) -> None:
    """Also where the device is a step ahead of the host."""
    engine, callbacks = build_float16_engine(), RecordingCallbacks()
    torch.manual_seed(1)
    trainer = build_trainer(engine)
    trainer._max_pending = max_pending
    assert trainer.train(callbacks)
    assert callbacks.steps("skipped") == [2, 4]
    assert callbacks.loss_scales == [2.0**15, 2.0**14]
    assert callbacks.events.index(("skipped", 2)) == callbacks.events.index(("step", 2)) - 1
    assert callbacks.steps("step") == [1, 2, 3, 4, 5, 6]
    assert all(map(math.isfinite, callbacks.losses))
    assert [math.isfinite(report.grad_norm) for report in callbacks.reports] == [True, False, False, True]
    assert engine.table.isfinite().all()
    assert {steps.item() for steps in trainer.optimizer.state_dict()["step"]} == {4.0}


def test_a_run_in_float16_goes_on_with_its_loss_scale() -> None:
    engine, whole = build_float16_engine(), RecordingCallbacks()
    torch.manual_seed(1)
    assert build_trainer(engine).train(whole)
    stopped_engine, stopped = build_float16_engine(), RecordingCallbacks(stop_at=3)
    torch.manual_seed(1)
    assert not build_trainer(stopped_engine).train(stopped)
    random = torch.get_rng_state()
    stopped_engine.loss_scale = torch.tensor(2.0**16)
    trainer, resumed = build_trainer(stopped_engine), RecordingCallbacks()
    trainer.load_state_dict(torch.load(io.BytesIO(stopped.states[3]), weights_only=True))
    assert stopped_engine.loss_scale == 2.0**15
    torch.set_rng_state(random)
    assert trainer.train(resumed)
    assert stopped.loss_scales + resumed.loss_scales == whole.loss_scales
    assert torch.equal(stopped_engine.table, engine.table)


def test_gradients_that_overflow_at_every_scale_stop_the_run() -> None:
    engine, callbacks = BigramEngine(), RecordingCallbacks()
    engine.loss_scale, before = torch.tensor(4.0), engine.table.detach().clone()
    engine.spoil = lambda batch, loss: add_infinite_gradient(loss)
    with pytest.raises(LorgnetteError, match=r"step 3: loss .*, gradient norm .*: not finite"):
        build_trainer(engine).train(callbacks)
    assert callbacks.loss_scales == [2.0, 1.0]
    assert torch.equal(engine.table, before)


def test_a_loss_that_is_not_finite_stops_a_run_in_float16_too() -> None:
    engine, callbacks = BigramEngine(), RecordingCallbacks()
    engine.loss_scale = torch.tensor(2.0**16)
    engine.spoil = lambda batch, loss: loss * float("nan")
    with pytest.raises(LorgnetteError, match="step 1: loss nan"):
        build_trainer(engine).train(callbacks)
    assert callbacks.events == []


def test_the_error_names_the_first_rows_and_counts_the_rest() -> None:
    engine = BigramEngine()
    engine.spoil = lambda batch, loss: loss * float("nan")
    settings = change(batch_size=20, max_tokens_per_microbatch=9)
    trainer = build_trainer(engine, settings, examples=[make_example(i) for i in range(20)])
    with pytest.raises(LorgnetteError) as caught:
        trainer.train(RecordingCallbacks())
    where = str(caught.value.where)
    assert where.count("x.csv, row") == 16
    assert where.endswith("; and 4 more")


class ScriptedTrainer(Trainer):
    """Its eval losses are given in advance."""

    eval_losses: list[float]

    def evaluate(self) -> float:
        return self.eval_losses.pop(0)


def build_scripted(eval_losses: list[float], **settings: Any) -> ScriptedTrainer:
    train_settings = change(eval_steps=1, **settings)
    sampler = BatchSampler(EXAMPLES, train_settings, 3, group_by_image=False)
    trainer = ScriptedTrainer(BigramEngine(), sampler, HELD_OUT, train_settings)
    trainer.eval_losses = eval_losses
    return trainer


def test_every_new_best_is_reported() -> None:
    callbacks = RecordingCallbacks()
    trainer = build_scripted([1, 3.0, 2.0, 2.5, 1.5, 1.7, 1.5])
    assert trainer.train(callbacks)
    assert callbacks.best_steps == [1, 2, 4]  # the base model's own loss is no candidate: it has no adapter
    assert (trainer.best_step, trainer.best_score) == (4, 1.5)


def test_the_callbacks_may_score_a_step_by_a_metric() -> None:
    callbacks = RecordingCallbacks()
    callbacks.score = lambda step: -0.1 * min(step, 6 - step)
    trainer = build_scripted([9, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], early_stopping_patience=2)
    assert trainer.train(callbacks)
    assert callbacks.best_steps == [1, 2, 3]
    assert trainer.step == 5  # the loss alone would not have stopped it


def test_early_stopping_ends_a_run_that_no_longer_improves() -> None:
    callbacks = RecordingCallbacks()
    trainer = build_scripted([9, 3.0, 2.0, 2.5, 2.2, 0.1], early_stopping_patience=2, save_steps=100)
    assert trainer.train(callbacks)
    assert callbacks.steps("step") == [1, 2, 3, 4]
    assert callbacks.steps("save") == []
    resumed, later = build_scripted([], early_stopping_patience=2, save_steps=100), RecordingCallbacks()
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.train(later)
    assert later.events == []


AUTO = change(epochs="auto", save_steps=1, eval_steps=4, learning_rate=0.05)


@pytest.mark.parametrize("low_loss", [0.15, 1.95])
def test_steps_chosen_from_the_losses_are_the_same_after_a_stop(low_loss: float, monkeypatch) -> None:
    """At the limit, and where a loss decides: stopped after any step, and with a device that is one step ahead."""
    monkeypatch.setattr("lorgnette.training.auto_steps.LOW_LOSS", low_loss)
    whole, engine = train(AUTO, held_out=HELD_OUT)
    last = len(whole.losses)
    assert (last == 64 + 2 * 3) is (low_loss == 0.15)
    assert whole.steps("evaluate")[-1] == last
    stops = {5, last - 8} if low_loss == 0.15 else {1, 5, last - 10, last - 9, last - 8, last - 7, last - 1}
    for stop_at in stops:
        first, resumed_engine = train(AUTO, held_out=HELD_OUT, stop_at=stop_at)
        random, resumed = torch.get_rng_state(), RecordingCallbacks()
        trainer = build_trainer(resumed_engine, AUTO, held_out=HELD_OUT)
        torch.set_rng_state(random)
        trainer.load_state_dict(torch.load(io.BytesIO(first.states[stop_at]), weights_only=True))
        assert trainer.train(resumed)
        assert first.losses + resumed.losses == whole.losses
        assert torch.equal(resumed_engine.table, engine.table)
        assert resumed.steps("evaluate") == [step for step in whole.steps("evaluate") if step > stop_at]
    ahead_engine, ahead = BigramEngine(), RecordingCallbacks()
    torch.manual_seed(1)
    trainer = build_trainer(ahead_engine, AUTO.model_copy(update={"save_steps": 1000}))
    trainer._max_pending = 1
    assert trainer.train(ahead)
    assert ahead.losses == whole.losses


def train_rank(
    world: World,
    engine: BigramEngine,
    callbacks: RecordingCallbacks,
    settings: TrainSettings = SETTINGS,
    *,
    dropout: float = 0.0,
    state: dict[str, Any] | None = None,
) -> Trainer:
    """The steps of one rank that are left after a state, with held-out examples."""
    engine.dropout.p = dropout
    trainer = build_trainer(engine, settings, held_out=HELD_OUT)
    trainer.world = world
    if state is not None:
        set_rng_state(state.pop("random"), torch.device("cpu"), world, (0, 0))
        trainer.load_state_dict(state)
    trainer.train(callbacks)
    return trainer


def train_plainly(world: World, settings: TrainSettings = SETTINGS) -> Any:
    engine, callbacks = BigramEngine(), RecordingCallbacks()
    train_rank(world, engine, callbacks, settings)
    return engine.table.detach().numpy(), callbacks


LARGE_STEPS = change(batch_size=8)


def run_out_of_memory(world: World) -> Any:
    """The second of the ranks, from the third step on: the second has two examples."""
    engine, callbacks = BigramEngine(), RecordingCallbacks()

    def fill_memory(batch: PackedBatch, loss: Tensor) -> Tensor:
        is_full = world.rank == 1 and len(callbacks.losses) > 0 and len(batch.examples) > 1
        if is_full:
            loss.backward()  # half of a pass has added to the gradient
            raise torch.OutOfMemoryError
        return loss

    engine.spoil = fill_memory
    trainer = train_rank(world, engine, callbacks, LARGE_STEPS)
    return engine.table.detach().numpy(), callbacks, trainer.max_tokens_per_microbatch


def stop_one_rank(world: World) -> Any:
    callbacks = RecordingCallbacks(stop_at=2 if world.rank == 2 else None)
    return train_rank(world, BigramEngine(), callbacks).step, callbacks.events


def stop_in_evaluation(world: World) -> Any:
    """One rank is asked to stop while it evaluates after the third step."""
    callbacks = RecordingCallbacks()
    is_asked = False

    def score(step: int) -> float:
        nonlocal is_asked
        is_asked = world.rank == 1 and step == 3
        return 0.0

    callbacks.score, callbacks.should_stop = score, lambda: is_asked  # type: ignore[method-assign]
    return train_rank(world, BigramEngine(), callbacks).step


def resume_with_dropout(world: World) -> Any:
    """Whether a run that is stopped and goes on equals one that is not. This engine draws as PEFT does."""
    engine, resumed_engine = BigramEngine(), BigramEngine()
    whole, stopped, resumed = (RecordingCallbacks(stop_at) for stop_at in (None, 2, None))
    train_rank(world, engine, whole, dropout=0.2)
    train_rank(world, resumed_engine, stopped, dropout=0.2)
    state = torch.load(io.BytesIO(stopped.states[3]), weights_only=True)
    torch.manual_seed(0)
    train_rank(world, resumed_engine, resumed, dropout=0.2, state=state)
    return stopped.losses + resumed.losses == whole.losses and torch.equal(engine.table, resumed_engine.table)


def overflow_on_one_rank(world: World) -> Any:
    engine = build_float16_engine() if world.rank == 1 else BigramEngine()
    engine.loss_scale, callbacks = torch.tensor(2.0**16), RecordingCallbacks()
    train_rank(world, engine, callbacks)
    return engine.table.detach().numpy(), callbacks


def choose_steps(world: World) -> Any:
    callbacks = RecordingCallbacks()
    trainer = train_rank(world, BigramEngine(), callbacks, AUTO.model_copy(update={"eval_steps": 100}))
    assert trainer.auto_steps is not None
    return trainer.step, trainer.auto_steps.end_reason


def score_by_rank(world: World) -> Any:
    """Rank 0 sees no step that is better than the first, the others see each better than the one before."""
    callbacks = RecordingCallbacks()
    callbacks.score = lambda step: step if world.is_main else -step
    trainer = train_rank(world, BigramEngine(), callbacks, change(eval_steps=1, early_stopping_patience=2))
    return trainer.step, trainer.best_step


def change_one_rank(world: World) -> Any:
    engine = BigramEngine()
    if world.rank == 1:
        engine.table.data[0, 0] += 1e-6
    with pytest.raises(LorgnetteError) as caught:
        train_rank(world, engine, RecordingCallbacks())
    return str(caught.value)


def spoil_one_rank(world: World) -> Any:
    engine = BigramEngine()
    engine.spoil = lambda batch, loss: loss * float("nan") if world.rank == 1 else loss
    before = engine.table.detach().clone()
    with pytest.raises(LorgnetteError) as caught:
        train_rank(world, engine, RecordingCallbacks())
    assert torch.equal(engine.table, before)
    return str(caught.value)


SCENARIOS = (
    train_plainly, run_out_of_memory, stop_one_rank, stop_in_evaluation, resume_with_dropout, overflow_on_one_rank,
    choose_steps, score_by_rank, change_one_rank, spoil_one_rank,
)  # fmt: skip


def run_scenarios(world: World) -> dict[str, Any]:
    results = {}
    for scenario in SCENARIOS:
        result = scenario(world)
        for part in result if isinstance(result, tuple) else ():
            if isinstance(part, RecordingCallbacks):
                part.score = part.should_stop = None  # type: ignore[assignment]  functions are not sent
        results[scenario.__name__] = result
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What three ranks did. In the third step of an epoch one has no example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorgnette.training.auto_steps.LOW_LOSS", 2.5)
        return run_ranks(run_scenarios, 3)


@pytest.fixture(scope="module")
def alone() -> tuple[Any, RecordingCallbacks]:
    return train_plainly(World())  # type: ignore[no-any-return]


def test_three_ranks_take_the_steps_of_one(ranks: Any, alone: Any) -> None:
    table, callbacks = alone
    for rank in ranks:
        own_table, own = rank["train_plainly"]
        assert np.array_equal(own_table, ranks[0]["train_plainly"][0])
        np.testing.assert_allclose(own_table, table, atol=1e-5)
        assert own.losses == pytest.approx(callbacks.losses, abs=1e-6)
        assert own.eval_losses == pytest.approx(callbacks.eval_losses, abs=1e-6)
        assert own.events == callbacks.events
        assert len(torch.load(io.BytesIO(own.states[4]), weights_only=True)["random"]) == 3


def test_the_log_counts_all_ranks(ranks: Any, alone: Any) -> None:
    sampler = build_trainer(BigramEngine()).sampler
    for own, one in zip(ranks[0]["train_plainly"][1].reports, alone[1].reports, strict=True):
        assert own.tokens_per_s * own.seconds == pytest.approx(one.tokens_per_s * one.seconds)
        assert own.ranks == 3
        assert 0 <= own.data_wait <= 1
        assert "imbalance" in own.to_record()
        assert "imbalance" not in one.to_record()
    lengths = [
        [sum(len(batch.input_ids) for batch in sampler.pack_step(
            0, 999, prefix_sharing=False, rank=rank, num_ranks=3
        ))] for rank in range(3)
    ]  # fmt: skip
    expected = np.max(lengths) / np.mean(lengths) - 1
    assert ranks[0]["train_plainly"][1].reports[0].imbalance == pytest.approx(expected) != 0


def test_a_rank_that_runs_out_of_memory_heals_and_all_take_its_size(ranks: Any) -> None:
    expected, _ = train_plainly(World(), LARGE_STEPS)
    sizes = {rank["run_out_of_memory"][2] for rank in ranks}
    assert len(sizes) == 1
    assert sizes.pop() < SETTINGS.max_tokens_per_microbatch
    for rank in ranks:
        table, callbacks, _ = rank["run_out_of_memory"]
        np.testing.assert_allclose(table, expected, atol=1e-5)
        assert callbacks.steps("out of memory")[0] == 3
        assert set(callbacks.ranks_out_of_memory) == {1}
        assert callbacks.steps("step") == [1, 2, 3, 4], "no step is lost"


def test_one_rank_that_is_asked_to_stop_stops_all(ranks: Any) -> None:
    """They hear of it with the next step, and all save the same one."""
    for rank in ranks:
        step, events = rank["stop_one_rank"]
        assert (step, events[-2:]) == (3, [("evaluate", 3), ("save", 3)])
        assert rank["stop_in_evaluation"] == 3


def test_each_rank_goes_on_with_its_own_dropout(ranks: Any) -> None:
    assert [rank["resume_with_dropout"] for rank in ranks] == [True] * 3


def test_an_overflow_on_one_rank_skips_the_step_on_all(ranks: Any) -> None:
    for rank in ranks:
        table, callbacks = rank["overflow_on_one_rank"]
        assert callbacks.steps("skipped") == [2, 4]
        assert callbacks.loss_scales == [2.0**15, 2.0**14]
        assert np.array_equal(table, ranks[0]["overflow_on_one_rank"][0])


def test_losses_and_scores_end_all_at_the_same_step(ranks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.training.auto_steps.LOW_LOSS", 2.5)
    expected = choose_steps(World())
    assert expected == (20, "low"), "a rank's share of the loss would be low at once"
    for rank in ranks:
        assert rank["choose_steps"] == expected
        assert rank["score_by_rank"] == (3, 1)


def test_errors_are_the_same_on_all(ranks: Any) -> None:
    differs, not_finite = ({rank[name] for rank in ranks} for name in ("change_one_rank", "spoil_one_rank"))
    assert len(differs) == len(not_finite) == 1
    assert "not the same on all ranks" in (message := differs.pop())
    assert "most ranks: rank 1 on " in message
    rows = [EXAMPLES[i].example.where for i in select_examples(0, 10, 4, 3)]
    assert all(row in message for message in not_finite for row in rows), "the rows of all ranks"
