"""The loop with an engine of one matrix: who is told what and when, and that nothing depends on how a step is cut.

(That its steps are the Trainer's: parity/test_trainer.py.)
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lorgnette.config import TrainSettings
from lorgnette.errors import LorgnetteError
from lorgnette.processing.packing import Share
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.trainer import StepReport, Trainer
from lorgnette.types import IGNORE_INDEX, Encoded, Example, PackedBatch

WORDS = 8


class Bigrams:
    """The engine: each token's row of a matrix predicts the next one."""

    dtype = torch.float32
    share: Share = "none"
    share_in_evaluation: Share = "none"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(WORDS, WORDS))
        self.parameters = [self.table]
        self.dropout = nn.Dropout(0.2)
        self.spoil: Callable[[PackedBatch, Tensor], Tensor] = lambda batch, loss: loss
        self.most_rows: int | None = None
        self.updates = 0

    def backward(self, batch: PackedBatch, draw: int) -> Tensor:
        if self.most_rows is not None and len(batch.input_ids) > self.most_rows:
            raise torch.OutOfMemoryError
        self.dropout.train()
        loss = self.spoil(batch, self.weighted(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def loss(self, batch: PackedBatch) -> Tensor:
        self.dropout.eval()
        return self.weighted(batch).detach()

    def updated(self) -> None:
        self.updates += 1

    def weighted(self, batch: PackedBatch) -> Tensor:
        rows = torch.from_numpy(batch.input_ids[batch.label_indices]).long()
        losses = cross_entropy(self.dropout(self.table[rows]), torch.from_numpy(batch.targets).long(), reduction="none")
        return (losses * torch.from_numpy(batch.label_weights)).sum()


class Notes:
    """The watcher: writes down what it is told, in order."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.losses: list[float] = []
        self.reports: list[StepReport] = []
        self.evals: list[float] = []
        self.bests: list[int] = []
        self.states: dict[int, bytes] = {}
        self.stop_at = stop_at
        self.mark: Callable[[int], float] | None = None

    def stepped(self, step: int, loss: float) -> None:
        self.events.append(("stepped", step))
        self.losses.append(loss)

    def logged(self, report: StepReport) -> None:
        self.events.append(("logged", report.step))
        self.reports.append(report)

    def evaluated(self, step: int, loss: float) -> float:
        self.events.append(("evaluated", step))
        self.evals.append(loss)
        return loss if self.mark is None else self.mark(step)

    def best(self, step: int) -> None:
        self.bests.append(step)

    def smaller(self, step: int, tokens: int) -> None:
        self.events.append(("smaller", step))

    def checkpoint(self, step: int, state: dict[str, Any]) -> None:
        self.events.append(("checkpoint", step))
        file = io.BytesIO()
        torch.save(state, file)
        self.states[step] = file.getvalue()

    def stop(self) -> bool:
        return self.stop_at is not None and len(self.losses) >= self.stop_at

    def steps(self, kind: str) -> list[int]:
        return [step for event, step in self.events if event == kind]


def made(number: int) -> Encoded:
    tokens = np.random.default_rng(number).integers(0, WORDS, 3 + number % 5).astype(np.int32)
    labels = tokens.copy()
    labels[0] = IGNORE_INDEX
    positions = np.zeros((3, len(tokens)), np.int32)
    return Encoded(Example(str(number), (), Path("x.csv"), number), tokens, labels, positions, (), ())


EXAMPLES = [made(i) for i in range(10)]
HELD_OUT = [made(i) for i in range(20, 23)]
TRAIN = TrainSettings(epochs=2, batch_size=4, learning_rate=0.1, logging_steps=2, save_steps=4, max_grad_norm=10)


def ran(
    train: TrainSettings = TRAIN, *, held_out: list[Encoded] | None = None, stop_at: int | None = None
) -> tuple[Notes, Bigrams]:
    engine, notes = Bigrams(), Notes(stop_at)
    torch.manual_seed(1)
    finished = training_of(engine, EXAMPLES, held_out or [], train, 3).train(notes)
    assert finished is (stop_at is None)
    return notes, engine


def changed(**settings: Any) -> TrainSettings:
    return TRAIN.model_copy(update=settings)


def test_who_is_told_what_and_in_which_order() -> None:
    """Ten examples by four: three steps an epoch, two epochs."""
    notes, _ = ran(held_out=HELD_OUT)
    assert notes.events == [
        ("evaluated", 0),
        ("stepped", 1), ("logged", 1),
        ("stepped", 2), ("logged", 2),
        ("stepped", 3), ("evaluated", 3),
        ("stepped", 4), ("logged", 4), ("checkpoint", 4),
        ("stepped", 5),
        ("stepped", 6), ("logged", 6), ("evaluated", 6),
    ]  # fmt: skip


def test_evaluation_follows_its_setting_and_its_examples() -> None:
    assert ran(changed(eval_steps=2), held_out=HELD_OUT)[0].steps("evaluated") == [0, 2, 4, 6]
    assert ran()[0].steps("evaluated") == []


def test_a_log_line_covers_the_steps_since_the_one_before() -> None:
    notes, _ = ran()
    means = [notes.losses[0], notes.losses[1], sum(notes.losses[2:4]) / 2, sum(notes.losses[4:6]) / 2]
    assert [report.loss for report in notes.reports] == pytest.approx(means)
    assert [report.epoch for report in notes.reports] == pytest.approx([1 / 3, 2 / 3, 4 / 3, 2])
    assert [report.learning_rate for report in notes.reports] == pytest.approx([0.1, 0.1 * 5 / 6, 0.1 * 3 / 6, 0.1 / 6])
    for report in notes.reports:
        assert report.grad_norm > 0
        assert report.tokens_per_s > 0
        assert 0 <= report.data_wait <= 1


def test_the_last_step_is_the_least_of_epochs_and_max_steps() -> None:
    for most, last in ((1, 1), (5, 5), (99, 6)):
        notes, _ = ran(changed(max_steps=most, save_steps=100, log_steps=100))
        assert notes.steps("stepped") == list(range(1, last + 1))
        assert notes.steps("checkpoint") == []  # what is kept of the last step the caller says
        assert notes.steps("logged") == sorted({1, last})


@pytest.mark.parametrize(
    "cut", [{"batch_size": 4, "accumulation": 1}, {"batch_size": 1, "accumulation": 4}, {"pass_tokens": 1}], ids=str
)
def test_how_a_step_is_cut_does_not_matter(cut: dict[str, int]) -> None:
    def trained(train: TrainSettings) -> tuple[list[float], Tensor]:
        engine, notes = Bigrams(), Notes()
        engine.dropout.p = 0.0
        training_of(engine, EXAMPLES, [], train, 3).train(notes)
        return notes.losses, engine.table.detach()

    (losses, table), (cut_losses, cut_table) = trained(TRAIN), trained(changed(**cut))
    assert cut_losses == pytest.approx(losses, abs=1e-6)
    torch.testing.assert_close(cut_table, table, atol=1e-5, rtol=0)


def test_a_step_that_memory_does_not_hold_is_taken_in_smaller_passes() -> None:
    def trained(most_rows: int | None) -> tuple[Notes, Bigrams]:
        engine, notes = Bigrams(), Notes()
        engine.dropout.p, engine.most_rows = 0.0, most_rows
        training_of(engine, EXAMPLES, [], TRAIN, 3).train(notes)
        return notes, engine

    (whole, engine), (cut, small) = trained(None), trained(9)
    assert cut.losses == pytest.approx(whole.losses, abs=1e-6)
    torch.testing.assert_close(small.table, engine.table, atol=1e-5, rtol=0)
    assert cut.steps("smaller") == [1], "the smaller passes are kept for the steps after it"
    assert engine.updates == small.updates == 6
    with pytest.raises(torch.OutOfMemoryError, match="a pass of one example"):
        trained(1)


def test_held_out_loss_is_a_mean_over_labels_without_dropout() -> None:
    engine = Bigrams()
    training = training_of(engine, EXAMPLES, HELD_OUT, TRAIN, 0)
    pairs = [(a, b) for e in HELD_OUT for a, b in zip(e.input_ids[:-1], e.input_ids[1:], strict=True)]
    rows, targets = (torch.tensor(np.array(side)).long() for side in zip(*pairs, strict=True))
    expected = cross_entropy(engine.table[rows], targets).item()
    assert training.evaluate() == training.evaluate() == pytest.approx(expected, abs=1e-6)
    cut = training_of(engine, EXAMPLES, HELD_OUT, changed(pass_tokens=1), 0)
    assert cut.evaluate() == pytest.approx(expected, abs=1e-6)
    assert engine.table.grad is None


def test_evaluating_does_not_change_the_training() -> None:
    assert ran(changed(eval_steps=1), held_out=HELD_OUT)[0].losses == ran()[0].losses


def test_the_seed_orders_the_examples() -> None:
    def losses(seed: int) -> list[float]:
        notes = Notes()
        torch.manual_seed(1)
        training_of(Bigrams(), EXAMPLES, [], TRAIN, seed).train(notes)
        return notes.losses

    assert losses(3) == losses(3) != losses(4)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_stopped_anywhere_and_resumed_is_never_stopped(stop_at: int) -> None:
    whole, engine = ran()
    stopped, half = ran(stop_at=stop_at)
    assert stopped.steps("stepped") == list(range(1, stop_at + 1))
    assert stopped.events[-1] == ("checkpoint", stop_at)
    random = torch.get_rng_state()
    resumed = training_of(half, EXAMPLES, [], TRAIN, 3)
    resumed.load_state_dict(torch.load(io.BytesIO(stopped.states[stop_at]), weights_only=True))
    torch.set_rng_state(random)
    rest = Notes()
    assert resumed.train(rest)
    assert stopped.losses + rest.losses == whole.losses
    assert torch.equal(half.table, engine.table)
    logged = [(r.step, r.loss, r.learning_rate, r.grad_norm) for r in stopped.reports + rest.reports]
    assert logged == [(r.step, r.loss, r.learning_rate, r.grad_norm) for r in whole.reports]


def test_a_stop_at_the_last_step_is_the_end() -> None:
    engine, notes = Bigrams(), Notes(stop_at=6)
    assert training_of(engine, EXAMPLES, [], TRAIN, 3).train(notes)
    assert notes.steps("checkpoint") == [4]


def test_a_finished_run_resumed_is_finished() -> None:
    whole, engine = ran(held_out=HELD_OUT)
    before = engine.table.detach().clone()
    training = training_of(engine, EXAMPLES, HELD_OUT, TRAIN, 3)
    training.load_state_dict(torch.load(io.BytesIO(whole.states[4]), weights_only=True))
    training.step = 6
    notes = Notes()
    assert training.train(notes)
    assert notes.events == []
    assert torch.equal(engine.table, before)


def infinite_gradient(loss: Tensor) -> Tensor:
    """A finite loss whose gradient is not: the slope of √0."""
    return loss + (loss - loss.detach()).abs().sqrt()


@pytest.mark.parametrize(
    "spoiled", [lambda loss: loss * float("nan"), lambda loss: loss + float("inf"), infinite_gradient],
    ids=["nan", "loss", "gradient"],
)  # fmt: skip
def test_what_is_not_finite_stops_the_run_and_is_not_learned(spoiled: Callable[[Tensor], Tensor]) -> None:
    engine, notes = Bigrams(), Notes()
    tables: list[Tensor] = []

    def spoil(batch: PackedBatch, loss: Tensor) -> Tensor:
        tables.append(engine.table.detach().clone())
        return spoiled(loss) if len(notes.losses) == 2 else loss

    engine.spoil = spoil
    training = training_of(engine, EXAMPLES, [], changed(save_steps=1), 3)
    with pytest.raises(LorgnetteError, match=r"step 3: loss .* not finite, the step was not taken") as caught:
        training.train(notes)
    assert torch.equal(engine.table, tables[-1])
    assert notes.steps("stepped") == notes.steps("checkpoint") == [1, 2]
    rows = set(range(10)) - {int(e.id) for e in (EXAMPLES[i].example for i in taken(0) + taken(1))}
    assert caught.value.where is not None
    assert caught.value.where.startswith("its rows: x.csv, row ")
    assert {int(part.rsplit(" ", 1)[1]) for part in caught.value.where.split("; ")} == rows
    assert "train.learning_rate" in str(caught.value.hint)


def training_of(
    engine: Bigrams, examples: Sequence[Encoded], held_out: Sequence[Encoded], train: TrainSettings, seed: int
) -> Trainer:
    return Trainer(engine, BatchSampler.from_settings(examples, train, seed, group_by_image=False), held_out, train)


def taken(step: int) -> list[int]:
    from lorgnette.training.epoch_order import select_examples

    return select_examples(step, 10, 4, 3)


def test_of_many_rows_the_first_are_named_and_the_rest_counted() -> None:
    engine = Bigrams()
    engine.spoil = lambda batch, loss: loss * float("nan")
    examples = [made(i) for i in range(20)]
    with pytest.raises(LorgnetteError) as caught:
        training_of(engine, examples, [], changed(batch_size=20, pass_tokens=9), 3).train(Notes())
    where = str(caught.value.where)
    assert where.count("x.csv, row") == 16
    assert where.endswith("; and 4 more")


class Told(Trainer):
    """A training whose eval losses are told beforehand."""

    @classmethod
    def of(cls, train: TrainSettings) -> "Told":
        return cls(Bigrams(), BatchSampler.from_settings(EXAMPLES, train, 3, group_by_image=False), HELD_OUT, train)

    def tell(self, losses: list[float]) -> "Told":
        self.told = iter(losses)
        return self

    def evaluate(self) -> float:
        return next(self.told)


def test_the_best_so_far_is_said_each_time_it_falls() -> None:
    notes = Notes()
    training = Told.of(changed(eval_steps=1)).tell([1, 3.0, 2.0, 2.5, 1.5, 1.7, 1.5])
    assert training.train(notes)
    assert notes.bests == [1, 2, 4]  # the untuned model's own loss is no candidate: there is no adapter to keep
    assert (training.best_step, training.best_score) == (4, 1.5)


def test_the_watcher_may_know_the_best_by_another_number() -> None:
    notes = Notes()
    notes.mark = lambda step: -0.1 * min(step, 6 - step)
    training = Told.of(changed(eval_steps=1, patience=2)).tell([9, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert training.train(notes)
    assert notes.bests == [1, 2, 3]
    assert training.step == 5  # by its loss it would have gone on


def test_patience_ends_a_run_that_no_longer_learns() -> None:
    notes, settings = Notes(), changed(eval_steps=1, patience=2, save_steps=100)
    training = Told.of(settings).tell([9, 3.0, 2.0, 2.5, 2.2, 0.1])
    assert training.train(notes)
    assert notes.steps("stepped") == [1, 2, 3, 4]
    assert notes.steps("checkpoint") == []
    again, later = Told.of(settings), Notes()
    again.load_state_dict(training.state_dict())
    assert again.train(later)  # resumed, it is finished still
    assert later.events == []
