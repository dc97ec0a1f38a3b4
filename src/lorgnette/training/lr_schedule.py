"""The learning rate of every step: a pure function of the step number."""

import math
from typing import Literal


def compute_learning_rate(
    step: int,
    total_steps: int,
    *,
    peak: float,
    warmup_steps: int,
    lr_scheduler_type: Literal["linear", "cosine", "constant"],
) -> float:
    """The learning rate of `step` (from 0) of `total_steps`.

    It rises linearly from 0 over `warmup_steps`, then falls to 0 at `total_steps` as in transformers'
    get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup, or stays constant.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    if lr_scheduler_type == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 - progress if lr_scheduler_type == "linear" else (1 + math.cos(math.pi * progress)) / 2)
