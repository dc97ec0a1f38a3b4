"""The same sentences about steps in check, plan, train and the page."""

import pytest

from lorgnette.config import TrainSettings
from lorgnette.training.auto_steps import AutoSteps
from lorgnette.training.step_count import StepCount

RULE = "until the loss is low or no longer falls (train.epochs=auto)"


def count(num_examples: int, **settings: object) -> StepCount:
    return StepCount(num_examples, TrainSettings(**settings))


@pytest.mark.parametrize(
    ("steps", "described", "warning"),
    [
        (count(496, epochs=2), "62: 2 epochs of 496 examples, 16 in a step", ""),
        (count(26, epochs=2), "4: 2 epochs of 26 examples, 16 in a step",
         "only 4 optimizer steps: too few to change much; train.epochs=auto chooses enough"),
        (count(1, epochs=1), "1: 1 epoch of 1 example, 16 in a step",
         "only 1 optimizer step: too few to change much; train.epochs=auto chooses enough"),
        (count(26), f"at most 68: {RULE}; 26 examples, 16 in a step", ""),
        (count(26, max_steps=9), f"at most 9: {RULE}; 26 examples, 16 in a step; train.max_steps=9",
         "only 9 optimizer steps: too few to change much; raise or remove train.max_steps"),
        (count(496, epochs=2, max_steps=99), "62: 2 epochs of 496 examples, 16 in a step", ""),
    ],
)  # fmt: skip
def test_steps_before_a_training(steps: StepCount, described: str, warning: str) -> None:
    assert (steps.describe(), steps.warning) == (described, warning)


def play(losses: list[float], max_steps: int | None = None) -> AutoSteps:
    auto_steps = AutoSteps(2, max_steps=max_steps)
    while len(auto_steps.losses) < auto_steps.total_steps:
        auto_steps.record_loss(losses[len(auto_steps.losses)], 10)
    return auto_steps


FALLING = [0.97**step for step in range(99)]


@pytest.mark.parametrize(
    ("auto_steps", "settings", "text"),
    [
        (play([0.1] * 99), {}, "13 steps: the loss is low, 0.1 (train.epochs=auto ends soon after it is below 0.15)"),
        (play([2.0] * 99), {}, "25 steps: the loss no longer falls, 2 (train.epochs=auto)"),
        (play([2 * x for x in FALLING]), {}, "68 steps, the limit of train.epochs=auto: the training loss is still "
         "0.272; if the answers are not right yet, a higher train.learning_rate, more examples or more steps (train."),
        (play(FALLING, 9), {"max_steps": 9}, "9 steps: train.max_steps=9"),
        (None, {"epochs": 2}, "4 steps: 2 epochs"),
        (None, {"epochs": 2, "max_steps": 3}, "3 steps: train.max_steps=3"),
    ],
)  # fmt: skip
def test_why_a_training_ended(auto_steps: AutoSteps | None, settings: dict[str, object], text: str) -> None:
    steps = count(26, **settings)
    last = auto_steps.total_steps if auto_steps else steps.total
    assert steps.describe_end(last, auto_steps).startswith(text)
    early = steps.describe_end(last - 1, auto_steps)
    assert early.endswith("no new best step for a while (train.early_stopping_patience)")
