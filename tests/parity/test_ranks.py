"""Parity 5: two, three and four ranks take the same steps as one, dropout included; a run goes on with other ranks.

A step has three examples, the last one of an epoch two: with more ranks, some have none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain import LossRecorder
from test_fast import build_engine

from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.distributed import TAIL, World
from lorgnette.engine.fast import FastEngine
from lorgnette.processing import packing
from lorgnette.training.checkpoint import find_latest_checkpoint, restore_checkpoint, save_checkpoint
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.trainer import Trainer
from lorgnette.types import Example
from tests.ranks import run_ranks

CPU = torch.device("cpu")
NUM_STEPS, SEED = 6, 3
SETTINGS = TrainSettings(epochs=2, batch_size=3, learning_rate=1e-3, save_steps=100, max_tokens_per_microbatch=80)
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
PROCESSOR = ProcessorSettings(image_size=(64, 96))
GRADIENT_BOUND, ADAPTER_BOUND = 5e-6, 5e-5
"""Of the largest entry, and absolute after 6 steps: AdamW divides by √v, so it enlarges what rounds otherwise."""


@dataclass(frozen=True)
class Case:
    """is_grouped: all captions of an image are in one step and share its masks."""

    dropout: float = 0.1
    is_grouped: bool = False
    is_fast: bool = True


CASES = {
    "dropout": Case(), "grouped": Case(is_grouped=True), "tree": Case(0.0), "reference": Case(0.0, is_fast=False),
}  # fmt: skip


@pytest.fixture(scope="module")
def trainers(make_pair: Callable[..., Any], example: Callable[..., Example]) -> dict[str, Trainer]:
    """Of each case, at its start. Every rank is forked from here, so they stay there."""
    words = ["a red car", "two dogs on a couch", "a man", "snow", "a plate of food with rice and beans"]
    captions = [
        example(("user", i % 4, "COCO Yes:"), ("assistant", f"{words[i % 5]} {words[i * 7 % 3]}")) for i in range(8)
    ]
    pair, trainers = make_pair(LORA, PROCESSOR), {}
    encoded = [pair.processor.encode(caption) for caption in captions]
    pair.features.prepare(grid for e in encoded for grid in e.grids)
    for name, case in CASES.items():
        engine = pair.engine
        if case.is_fast:
            fast = build_engine(pair, LORA)
            engine = FastEngine(
                fast.decoder, fast.adapter, fast.features, dropout=case.dropout, group_by_image=case.is_grouped
            )
        sampler = BatchSampler(encoded, SETTINGS, SEED, group_by_image=case.is_grouped)
        trainers[name] = Trainer(engine, sampler, [], SETTINGS)
    return trainers


def copy_parameters(trainer: Trainer) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in trainer.engine.parameters]).numpy().copy()


def compute_gradient(trainer: Trainer) -> np.ndarray:
    """Of the first step, of all ranks."""
    flat_grad = trainer.engine.flat_grad
    for batch in trainer._pack_step(0):
        trainer.engine.backward(batch)
    trainer.world.all_reduce(flat_grad)
    gradient = flat_grad[:-TAIL].numpy().copy()
    flat_grad.zero_()
    return gradient


def measure(world: World, trainers: dict[str, Trainer]) -> dict[str, Any]:
    """Of each case the gradient of the first step, the losses of six steps and the adapter after them."""
    results = {}
    for name, trainer in trainers.items():
        trainer.world, recorder = world, LossRecorder()
        gradient = compute_gradient(trainer)
        assert trainer.train(recorder)
        results[name] = gradient, recorder.losses, copy_parameters(trainer)
    return results


@pytest.fixture(scope="module")
def alone(trainers: dict[str, Trainer]) -> dict[str, Any]:
    """One rank's."""
    return run_ranks(measure, 1, trainers)[0]


def measure_gradient_distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("num_ranks", "names"), [(3, list(CASES)), (4, ["dropout"])])
def test_ranks_take_the_steps_of_one(
    trainers: dict[str, Trainer], alone: dict[str, Any], num_ranks: int, names: list[str]
) -> None:
    ranks = run_ranks(measure, num_ranks, {name: trainers[name] for name in names})
    for name in names:
        gradient, losses, adapter = alone[name]
        assert measure_gradient_distance(ranks[0][name][0], gradient) < GRADIENT_BOUND, name
        assert len(losses) == NUM_STEPS
        assert ranks[0][name][1] == pytest.approx(losses, rel=1e-5)
        assert np.abs(ranks[0][name][2] - adapter).max() < ADAPTER_BOUND, name
        for other in ranks[1:]:
            assert other[name][1] == ranks[0][name][1]
            assert np.array_equal(other[name][2], ranks[0][name][2]), f"{name}: ranks are equal to the bit"


def measure_wrong_masks(world: World, trainers: dict[str, Trainer]) -> np.ndarray:
    """The gradient if the places of examples were counted in each micro-batch."""
    right = packing._pack_tree
    packing._pack_tree = lambda tree, places, *rest: right(tree, range(len(tree.examples)), *rest)
    trainers["dropout"].world = world
    return compute_gradient(trainers["dropout"])


def test_masks_by_micro_batch_would_differ(trainers: dict[str, Trainer], alone: dict[str, Any]) -> None:
    """Negative control."""
    gradient = run_ranks(measure_wrong_masks, 2, trainers)[0]
    assert measure_gradient_distance(gradient, alone["dropout"][0]) > 1000 * GRADIENT_BOUND


class Stopper(LossRecorder):
    """Saves a checkpoint after the step `last` and stops. Several ranks hear of a stop with the next step."""

    def __init__(self, trainer: Trainer, last: int, folder: Path) -> None:
        super().__init__()
        self.trainer, self.last, self.folder = trainer, last, folder
        self.step = trainer.step

    def on_step_end(self, step: int, loss: float) -> None:
        super().on_step_end(step, loss)
        self.step = step

    def on_save(self, step: int, state: Any) -> None:
        if self.trainer.world.is_main:
            save_checkpoint(self.folder, step, self.save_adapter, state)

    def save_adapter(self, folder: Path) -> None:
        np.save(folder / "adapter.npy", copy_parameters(self.trainer))

    def should_stop(self) -> bool:
        return self.step >= self.last - (self.trainer.world.size > 1)


def go_on(world: World, trainers: dict[str, Trainer], folder: Path, last: int) -> tuple[int, np.ndarray]:
    """Train from the newest checkpoint to the step `last`."""
    trainer = trainers["dropout"]
    trainer.world = world
    if latest := find_latest_checkpoint(folder):
        adapter = np.load(latest[1] / "adapter.npy")
        trainer.engine.parameters[0].data.copy_(torch.from_numpy(adapter))
        trainer.engine.sync_weights()
        restore_checkpoint(trainer, latest[1], CPU)
    assert trainer.train(Stopper(trainer, last, folder)) is (last == NUM_STEPS)
    return trainer.step, copy_parameters(trainer)


def test_a_run_goes_on_with_other_numbers_of_ranks(
    trainers: dict[str, Trainer], alone: dict[str, Any], tmp_path: Path
) -> None:
    for num_ranks, last in ((1, 2), (3, 4), (2, NUM_STEPS)):
        results = run_ranks(go_on, num_ranks, trainers, tmp_path, last)
        assert [step for step, _ in results] == [last] * num_ranks
    assert np.abs(results[0][1] - alone["dropout"][2]).max() < ADAPTER_BOUND
