"""The learning rate of every step: a pure function of the step number."""

import math

from lorgnette.config import TrainSettings


def compute_learning_rate(step: int, total_steps: int, settings: TrainSettings) -> float:
    """The learning rate of `step` (from 0) of `total_steps`.

    It rises linearly from 0 over the warm-up, then falls to 0 at `total_steps` as in transformers'
    get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup, or stays constant.
    (`train.epochs=auto` has its own schedule: auto_steps.py.)
    """
    peak, kind = settings.learning_rate, settings.lr_scheduler_type
    warmup_steps = settings.count_warmup_steps(total_steps)
    if step < warmup_steps:
        return peak * step / warmup_steps
    if kind == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * ((1 + math.cos(math.pi * progress)) / 2 if kind == "cosine" else 1 - progress)
