"""Pure functions of the step's number: rates as transformers', every example once an epoch, groups whole."""

from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from lorgnette.training.epoch_order import (
    ImageGroups,
    compute_learning_rate,
    compute_steps_per_epoch,
    select_examples,
    select_grouped_examples,
)
from lorgnette.types import Encoded, Example, Image, ImageGrid

COUNT = st.integers(1, 60)
THEIRS = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("schedule", THEIRS)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (20, 0), (20, 1), (20, 7), (20, 19), (20, 20), (5, 9)])
def test_rates_are_transformers(schedule: str, total: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    scheduler = THEIRS[schedule](optimizer, warmup, total)  # type: ignore[operator]
    for step in range(total):
        ours = compute_learning_rate(step, total, peak=3e-4, warmup_steps=warmup, lr_scheduler_type=schedule)  # type: ignore[arg-type]
        assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9, abs=1e-18)
        scheduler.step()


@given(examples=COUNT, per_step=COUNT, seed=st.integers(0, 2**62), epochs=st.integers(1, 3))
def test_every_epoch_takes_every_example_once(examples: int, per_step: int, seed: int, epochs: int) -> None:
    count = compute_steps_per_epoch(examples, per_step)
    for epoch in range(epochs):
        steps = [select_examples(epoch * count + i, examples, per_step, seed) for i in range(count)]
        assert sorted(i for step in steps for i in step) == list(range(examples))
        assert [len(step) for step in steps[:-1]] == [per_step] * (count - 1)
        assert 1 <= len(steps[-1]) <= per_step


@given(examples=COUNT, per_step=COUNT, steps=st.lists(st.integers(0, 300), max_size=8))
def test_a_step_is_the_same_whichever_steps_were_asked_before(examples: int, per_step: int, steps: list[int]) -> None:
    inorder = {step: select_examples(step, examples, per_step, 5) for step in range(max(steps, default=0) + 1)}
    assert all(select_examples(step, examples, per_step, 5) == inorder[step] for step in steps)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [select_examples(epoch, 50, 50, seed) for epoch in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert list(range(50)) not in orders
    changed = select_examples(0, 50, 50, 0)
    changed.clear()
    assert select_examples(0, 50, 50, 0) == orders[0]


def groups_of(sizes: list[int]) -> ImageGroups:
    return ImageGroups(tuple(tuple(range(a, b)) for a, b in pairwise(accumulate([0, *sizes]))))


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=40), per_step=st.integers(1, 20), seed=st.integers(0, 9))
def test_groups_stay_whole_and_every_example_comes_once_an_epoch(sizes: list[int], per_step: int, seed: int) -> None:
    groups = groups_of(sizes)
    count = compute_steps_per_epoch(sum(sizes), per_step)
    biggest = min(max(sizes), per_step)
    for epoch in range(2):
        steps = [select_grouped_examples(epoch * count + i, groups, per_step, seed) for i in range(count)]
        assert sorted(i for step in steps for i in step) == list(range(sum(sizes)))
        assert all(1 <= len(step) <= per_step + biggest for step in steps)
        for group in groups.indices:
            homes = {n for n, step in enumerate(steps) if not set(group).isdisjoint(step)}
            assert len(homes) <= -(-len(group) // per_step)


@given(examples=COUNT, per_step=COUNT, seed=st.integers(0, 9), step=st.integers(0, 200))
def test_groups_of_one_are_no_groups(examples: int, per_step: int, seed: int, step: int) -> None:
    alone = groups_of([1] * examples)
    assert select_grouped_examples(step, alone, per_step, seed) == select_examples(step, examples, per_step, seed)


def test_a_step_of_groups_is_the_same_whichever_steps_were_asked_before() -> None:
    sizes = [5, 5, 6, 5, 1, 7, 5] * 9
    inorder = [select_grouped_examples(step, groups_of(sizes), 16, 3) for step in range(60)]
    assert all(select_grouped_examples(step, groups_of(sizes), 16, 3) == inorder[step] for step in (59, 0, 33, 34, 2))
    assert inorder != [select_grouped_examples(step, groups_of(sizes), 16, 4) for step in range(60)]
    epochs = [[tuple(step) for step in inorder[at : at + 20]] for at in (0, 20, 40)]
    assert compute_steps_per_epoch(sum(sizes), 16) == 20
    assert set(epochs[0]).isdisjoint(epochs[1])


def test_five_captions_a_picture_fill_the_steps_evenly() -> None:
    """Of COCO's size: 16 examples a step are three pictures, sometimes four."""
    groups = groups_of([5] * 1000)
    sizes = [len(select_grouped_examples(step, groups, 16, 0)) for step in range(compute_steps_per_epoch(5000, 16))]
    assert set(sizes[:-1]) == {15, 20}
    assert sum(sizes) == 5000


def test_examples_are_grouped_by_the_picture_they_begin_with() -> None:
    cat, dog = (ImageGrid(Image(Path(name)), 1, 2, 2, 2) for name in ("cat.png", "dog.png"))
    none = np.zeros(0, np.int32)
    examples = [
        Encoded(Example("", (), Path("x"), 1), none, none, none.reshape(3, 0), grids, ())
        for grids in ((cat,), (), (dog,), (cat, dog), (), (cat,))
    ]
    assert ImageGroups.from_examples(examples).indices == ((0, 3, 5), (1,), (2,), (4,))
