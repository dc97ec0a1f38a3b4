"""Which examples a step takes, and at what learning rate: pure functions of the step's number.

Nothing is remembered between steps, so a resumed run needs to know its step and nothing else.
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np


def steps_in_epoch(examples: int, per_step: int) -> int:
    """Steps a pass over the examples takes; the last one may be smaller."""
    return math.ceil(examples / per_step)


def members(step: int, examples: int, per_step: int, seed: int) -> list[int]:
    """Indices of the examples of step `step` (from 0): a fresh permutation in every epoch, without replacement."""
    epoch, within = divmod(step, steps_in_epoch(examples, per_step))
    return _order(epoch, examples, seed)[within * per_step : (within + 1) * per_step]


def learning_rate(
    step: int, total: int, *, peak: float, warmup: int, schedule: Literal["linear", "cosine", "constant"]
) -> float:
    """The rate of step `step` (from 0) of `total`: up from 0 over `warmup` steps, then down to 0 at `total`
    (transformers' get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup), or level."""
    if step < warmup:
        return peak * step / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, total - warmup)
    return peak * (1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


@lru_cache(maxsize=2)
def _order(epoch: int, examples: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(examples).tolist()
    return order
