"""Pure functions of the step's number: rates as transformers', every example once an epoch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from lorgnette.train.schedule import learning_rate, members, steps_in_epoch

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
        ours = learning_rate(step, total, peak=3e-4, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
        assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9, abs=1e-18)
        scheduler.step()


@given(examples=COUNT, per_step=COUNT, seed=st.integers(0, 2**62), epochs=st.integers(1, 3))
def test_every_epoch_takes_every_example_once(examples: int, per_step: int, seed: int, epochs: int) -> None:
    count = steps_in_epoch(examples, per_step)
    for epoch in range(epochs):
        steps = [members(epoch * count + i, examples, per_step, seed) for i in range(count)]
        assert sorted(i for step in steps for i in step) == list(range(examples))
        assert [len(step) for step in steps[:-1]] == [per_step] * (count - 1)
        assert 1 <= len(steps[-1]) <= per_step


@given(examples=COUNT, per_step=COUNT, steps=st.lists(st.integers(0, 300), max_size=8))
def test_a_step_is_the_same_whichever_steps_were_asked_before(examples: int, per_step: int, steps: list[int]) -> None:
    inorder = {step: members(step, examples, per_step, 5) for step in range(max(steps, default=0) + 1)}
    assert all(members(step, examples, per_step, 5) == inorder[step] for step in steps)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [members(epoch, 50, 50, seed) for epoch in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert list(range(50)) not in orders
    changed = members(0, 50, 50, 0)
    changed.clear()
    assert members(0, 50, 50, 0) == orders[0]
