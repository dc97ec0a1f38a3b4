"""What a metric found, and what it adds up so that a resampled set can be scored without looking at its texts again."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True, slots=True)
class Score:
    """One metric over one set of predictions.

    value:       of the whole set; None where the metric means nothing for it, and note says why.
    per_example: in the order of the examples; empty where value is None.
    interval:    95 % bootstrap confidence interval of value; None where there is one example or none.
    """

    name: str
    value: float | None
    per_example: tuple[float, ...]
    interval: tuple[float, float] | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """A metric's sufficient statistics: the value of any multiset of the N examples is value_of(sum of their counts).

    per_example: [N] what the metric says of each example alone.
    counts:      [N, K] what adds up over examples.
    value_of:    [B, K] sums → [B] values.
    note:        what a reader of the value must know; nothing: the metric means nothing here.
    """

    per_example: Float64[np.ndarray, " N"]
    counts: Float64[np.ndarray, "N K"]
    compute_value: Callable[[Float64[np.ndarray, "B K"]], Float64[np.ndarray, " B"]]
    note: str | None = None
    is_undefined: bool = False

    @property
    def value(self) -> float | None:
        """Of the set as it is; None where the metric means nothing for it."""
        if self.is_undefined or not len(self.counts):
            return None
        return float(self.compute_value(self.counts.sum(axis=0, keepdims=True))[0])


def tally_mean(per_example: Float64[np.ndarray, " N"], note: str | None = None, *, is_undefined: bool = False) -> Tally:
    """The tally of a metric whose value is the mean over examples."""
    return Tally(
        per_example, np.stack([per_example, np.ones_like(per_example)], axis=1), _divide_sums, note, is_undefined
    )


def _divide_sums(sums: Float64[np.ndarray, "B 2"]) -> Float64[np.ndarray, " B"]:
    ratio: Float64[np.ndarray, " B"] = sums[:, 0] / sums[:, 1]
    return ratio
