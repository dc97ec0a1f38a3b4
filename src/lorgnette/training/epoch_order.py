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
class Groups:
    """Indices of the examples that stay together. Told apart by identity, so that looking one up costs nothing."""

    members: tuple[tuple[int, ...], ...]

    @classmethod
    def by_picture(cls, examples: Sequence[Encoded]) -> "Groups":
        """The examples that begin with the same picture; one without pictures is alone."""
        found: dict[Hashable, list[int]] = {}
        for i, encoded in enumerate(examples):
            found.setdefault(encoded.grids[0] if encoded.grids else i, []).append(i)
        return cls(tuple(map(tuple, found.values())))

    @cached_property
    def examples(self) -> int:
        return sum(map(len, self.members))


def steps_in_epoch(examples: int, per_step: int) -> int:
    """Steps a pass over the examples takes; the last one may be smaller."""
    return math.ceil(examples / per_step)


def members(step: int, examples: int, per_step: int, seed: int) -> list[int]:
    """Indices of the examples of step `step` (from 0): a fresh permutation in every epoch, without replacement."""
    epoch, within = divmod(step, steps_in_epoch(examples, per_step))
    return _order(epoch, examples, seed)[within * per_step : (within + 1) * per_step]


def grouped_members(step: int, groups: Groups, per_step: int, seed: int) -> list[int]:
    """As `members`, but whole groups in a fresh order: a step takes per_step examples, give or take one group, and an
    epoch as many steps as without groups. Only a group of more than per_step examples is torn, into parts of so many.
    """
    epoch, within = divmod(step, steps_in_epoch(groups.examples, per_step))
    parts, order, cuts = _laid_out(epoch, groups, per_step, seed)
    return [i for part in order[cuts[within] : cuts[within + 1]] for i in parts[part]]


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


@lru_cache(maxsize=2)
def _parts(groups: Groups, per_step: int) -> list[tuple[int, ...]]:
    return [group[at : at + per_step] for group in groups.members for at in range(0, len(group), per_step)]


@lru_cache(maxsize=2)
def _laid_out(
    epoch: int, groups: Groups, per_step: int, seed: int
) -> tuple[list[tuple[int, ...]], list[int], list[int]]:
    """The parts, their order in an epoch, and where in it each step begins (and the last ends).

    Laid end to end, a part belongs to the step that holds its middle. Where that leaves a step without any, parts move
    by one: there are enough, for none is longer than a step.
    """
    parts = _parts(groups, per_step)
    order = _order(epoch, len(parts), seed)
    sizes = np.array([len(parts[part]) for part in order])
    steps = steps_in_epoch(int(sizes.sum()), per_step)
    place = np.arange(len(parts))
    at = (2 * sizes.cumsum() - sizes - 1) // (2 * per_step)
    at = np.maximum(at, place + steps - len(parts))
    at = np.minimum.accumulate(at - place) + place
    return parts, order, np.searchsorted(at, np.arange(steps + 1)).tolist()
