"""`train.epochs=auto` is a function of the losses with a fixed lag. (bench/small_data.py shows what it does.)"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.training.auto_steps import AutoSteps, compute_eval_steps, compute_step_limit

FALLING = [4 * 0.9**step for step in range(200)]
"""Below 0.15, as a mean of four, after step 33."""


def play(steps: AutoSteps, losses: list[float]) -> tuple[int, list[float]]:
    """(number of steps, factors of the learning rate) of a training with these losses."""
    factors = []
    while len(factors) < steps.total_steps:
        factors.append(steps.compute_rate_factor(len(factors)))
        steps.record_loss(losses[len(factors) - 1], 10)
    return len(factors), factors


def test_a_low_loss_ends_the_training_after_eight_smaller_steps() -> None:
    steps = AutoSteps(2)
    count, factors = play(steps, FALLING)
    first_low = next(n for n in range(4, 200) if sum(FALLING[n - 4 : n]) / 4 < 0.15)
    assert (count, steps.end_reason) == (first_low + 1 + 8, "low")
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert set(factors[4 : first_low + 2]) == {1.0}
    assert factors[-8:] == pytest.approx([1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_one_low_loss_is_chance() -> None:
    noisy = [0.01 if step == 20 else 2.0 * 0.97**step for step in range(200)]
    assert play(AutoSteps(2), noisy)[0] == 68


def test_every_example_is_seen_once_first() -> None:
    assert play(AutoSteps(1), [0.01] * 99)[0] == 13  # four losses, one more step, eight smaller ones
    assert play(AutoSteps(30), [0.01] * 99)[0] == 30 + 1 + 8


def test_a_loss_that_no_longer_falls_ends_the_training() -> None:
    """Two windows of whole epochs are compared, so that a hard and an easy half of the data do not matter."""
    steps = AutoSteps(5)  # the windows have ten steps
    losses = [3 - step / 20 if step < 20 else 2.0 for step in range(200)]
    alternating = [loss + (0.5 if step % 5 < 2 else -0.3) for step, loss in enumerate(losses)]
    assert play(steps, alternating) == play(AutoSteps(5), losses)
    assert (steps.total_steps, steps.end_reason) == (40 + 1 + 8, "flat")
    assert play(AutoSteps(5), [3 * 0.99**step for step in range(200)])[0] == 74, "it falls by more than 2 %"


def test_a_small_last_step_counts_as_its_labels() -> None:
    """Of 17 examples the second step of an epoch has one, and not the same in every epoch."""
    hard, easy = AutoSteps(2), AutoSteps(2)
    for step in range(16):
        common, single = 2 * 0.99**step, 0.5 if step < 8 else 3.5
        hard.record_loss(common if step % 2 == 0 else single, 160 if step % 2 == 0 else 1)
        easy.record_loss(common if step % 2 == 0 else single, 10)
    assert not hard.has_decided
    assert easy.end_reason == "flat"


def test_the_limit_ends_with_smaller_steps_too() -> None:
    steps = AutoSteps(3)
    rising = [2 - step / 100 for step in range(200)]
    count, factors = play(steps, rising)
    assert (count, steps.end_reason) == (64 + 2 * 3, "limit")
    assert factors[-8:] == pytest.approx([n / 8 for n in range(8, 0, -1)])
    assert compute_step_limit(3) == 70
    assert compute_step_limit(3, 500) == 70, "max_steps only lowers it"


@pytest.mark.parametrize("max_steps", [1, 2, 3, 12, 13, 20])
def test_max_steps_is_a_lower_limit(max_steps: int) -> None:
    count, factors = play(AutoSteps(2, max_steps=max_steps), FALLING)
    assert count == max_steps
    assert all(0 < factor <= 1 for factor in factors), "no step is wasted"
    assert factors[-1] <= 1 / min(8, max_steps)


def test_a_reason_that_comes_while_the_rate_falls_at_the_limit_adds_no_steps() -> None:
    late = [0.99**step for step in range(62)] + [0.01] * 20
    steps = AutoSteps(1)
    assert play(steps, late)[0] == 66
    assert steps.end_reason == "low"


@given(
    losses=st.lists(st.floats(0.01, 4), min_size=200, max_size=200), lag=st.integers(0, 1), per_epoch=st.integers(1, 20)
)
def test_a_late_host_takes_the_same_steps(losses: list[float], lag: int, per_epoch: int) -> None:
    """The device is up to one step ahead: the loss of a step is known after the next one has started."""
    at_once, late = AutoSteps(per_epoch), AutoSteps(per_epoch)
    count, factors = play(at_once, losses)
    late_factors: list[float] = []
    while len(late_factors) < late.total_steps:
        late_factors.append(late.compute_rate_factor(len(late_factors)))
        if len(late_factors) > lag:
            late.record_loss(losses[len(late_factors) - 1 - lag], 10)
    assert (len(late_factors), late_factors) == (count, factors)


def test_a_host_that_is_three_steps_late_would_take_others() -> None:
    """The negative control."""
    late, factors = AutoSteps(1), list[float]()
    while len(factors) < late.total_steps:
        factors.append(late.compute_rate_factor(len(factors)))
        if len(factors) > 3:
            late.record_loss(FALLING[len(factors) - 4], 10)
    assert factors != play(AutoSteps(1), FALLING)[1]


@pytest.mark.parametrize("num_examples", range(1, 13))
def test_evaluations_are_few_and_often_enough(num_examples: int) -> None:
    limit = compute_step_limit(num_examples)
    assert limit / 17 <= compute_eval_steps(limit) <= 8 + limit / 16
    assert math.ceil(compute_step_limit(10_000) / compute_eval_steps(compute_step_limit(10_000))) <= 16
