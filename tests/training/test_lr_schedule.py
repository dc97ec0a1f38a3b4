"""Learning rates are transformers'."""

import pytest
import torch
from transformers import (
    TrainingArguments,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from lorgnette.config import TrainSettings
from lorgnette.training.lr_schedule import compute_learning_rate

TRANSFORMERS = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (20, 0), (20, 1), (20, 7), (20, 19), (20, 20), (5, 9)])
def test_rates_are_transformers(kind: str, total: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    scheduler = TRANSFORMERS[kind](optimizer, warmup, total)  # type: ignore[operator]
    settings = TrainSettings(epochs=1, learning_rate=3e-4, warmup_steps=warmup, lr_scheduler_type=kind)  # type: ignore[arg-type]
    for step in range(total):
        ours = compute_learning_rate(step, total, settings)
        assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9, abs=1e-18)
        scheduler.step()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.999])
@pytest.mark.parametrize("total", [1, 7, 62, 1000])
def test_a_share_of_all_steps_is_transformers(share: float, total: int) -> None:
    theirs = TrainingArguments(warmup_steps=share).get_warmup_steps(total)
    assert TrainSettings(epochs=1, warmup_steps=share).count_warmup_steps(total) == theirs
    assert TrainSettings(warmup_steps=theirs).count_warmup_steps(total) == theirs
