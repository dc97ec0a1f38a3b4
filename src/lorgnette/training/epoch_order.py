"""Which examples a step takes, and at what learning rate: pure functions of the step's number.

Nothing is remembered between steps, so a resumed run needs to know its step and nothing else.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from lorgnette.types import Encoded


@dataclass(frozen=True, eq=False)
class ImageGroups:
    """Indices of the examples that stay together. Told apart by identity, so that looking one up costs nothing."""

    indices: tuple[tuple[int, ...], ...]

    @classmethod
    def from_examples(cls, examples: Sequence[Encoded]) -> "ImageGroups":
        """The examples that begin with the same picture; one without pictures is alone."""
        found: dict[Hashable, list[int]] = {}
        for i, encoded in enumerate(examples):
            found.setdefault(encoded.grids[0] if encoded.grids else i, []).append(i)
        return cls(tuple(map(tuple, found.values())))

    @cached_property
    def num_examples(self) -> int:
        return sum(map(len, self.indices))


def compute_steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Steps a pass over the examples takes; the last one may be smaller."""
    return math.ceil(num_examples / batch_size)


def select_examples(step: int, num_examples: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the examples of step `step` (from 0): a fresh permutation in every epoch, without replacement."""
    epoch, within = divmod(step, compute_steps_per_epoch(num_examples, batch_size))
    return _draw_order(epoch, num_examples, seed)[within * batch_size : (within + 1) * batch_size]


def select_grouped_examples(step: int, groups: ImageGroups, batch_size: int, seed: int) -> list[int]:
    """As `members`, but whole groups in a fresh order: a step takes per_step examples, give or take one group, and an
    epoch as many steps as without groups. Only a group of more than per_step examples is torn, into parts of so many.
    """
    epoch, within = divmod(step, compute_steps_per_epoch(groups.num_examples, batch_size))
    parts, order, cuts = _assign_groups_to_steps(epoch, groups, batch_size, seed)
    return [i for part in order[cuts[within] : cuts[within + 1]] for i in parts[part]]


def compute_learning_rate(
    step: int,
    total_steps: int,
    *,
    peak: float,
    warmup_steps: int,
    lr_scheduler_type: Literal["linear", "cosine", "constant"],
) -> float:
    """The rate of step `step` (from 0) of `total`: up from 0 over `warmup` steps, then down to 0 at `total`
    (transformers' get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup), or level."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    if lr_scheduler_type == "constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (1 - done if lr_scheduler_type == "linear" else (1 + math.cos(math.pi * done)) / 2)


@lru_cache(maxsize=2)
def _draw_order(epoch: int, examples: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(examples).tolist()
    return order


@lru_cache(maxsize=2)
def _split_large_groups(groups: ImageGroups, per_step: int) -> list[tuple[int, ...]]:
    return [group[at : at + per_step] for group in groups.indices for at in range(0, len(group), per_step)]


@lru_cache(maxsize=2)
def _assign_groups_to_steps(
    epoch: int, groups: ImageGroups, per_step: int, seed: int
) -> tuple[list[tuple[int, ...]], list[int], list[int]]:
    """The parts, their order in an epoch, and where in it each step begins (and the last ends).

    Laid end to end, a part belongs to the step that holds its middle. Where that leaves a step without any, parts move
    by one: there are enough, for none is longer than a step.
    """
    parts = _split_large_groups(groups, per_step)
    order = _draw_order(epoch, len(parts), seed)
    sizes = np.array([len(parts[part]) for part in order])
    steps = compute_steps_per_epoch(int(sizes.sum()), per_step)
    place = np.arange(len(parts))
    at = (2 * sizes.cumsum() - sizes - 1) // (2 * per_step)
    at = np.maximum(at, place + steps - len(parts))
    at = np.minimum.accumulate(at - place) + place
    return parts, order, np.searchsorted(at, np.arange(steps + 1)).tolist()
