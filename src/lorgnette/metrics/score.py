"""A metric's value, and the sufficient statistics that score a resampled set without its texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one set of predictions.

    value:       of the whole set; None if the metric is undefined for it, and note says why.
    per_example: in the order of the examples; empty if value is None.
    interval:    95 % confidence interval of value (bootstrap.compute_intervals); None for fewer than two images, and
                 where all examples agree and the metric is no proportion: resampling then shows no uncertainty.
    """

    name: str
    value: float | None
    per_example: tuple[float, ...]
    interval: tuple[float, float] | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A metric before and after fine-tuning, as text.

    change: whether the answers are better or worse by more than chance; "unsure": neither. difference: after minus
    before, with its interval. description: the metric in a line. note: a caveat.
    """

    name: str
    before: str
    after: str
    change: Literal["better", "worse", "unsure"] = "unsure"
    note: str = ""
    difference: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Tally:
    """A metric's sufficient statistics: any multiset of the N examples scores compute_value(sum of their counts).

    per_example:   [N] the metric of each example alone.
    counts:        [N, K] summed over examples; [G, K] for G groups of examples that are drawn together.
    compute_value: [B, K] sums → [B] values.
    note:          a caveat for the reader of the value.
    is_undefined:  the metric has no value for this set.
    is_proportion: the value is the share of examples that are right; per_example is 0 or 1.
    """

    per_example: Float64[np.ndarray, " N"]
    counts: Float64[np.ndarray, "N K"]
    compute_value: Callable[[Float64[np.ndarray, "B K"]], Float64[np.ndarray, " B"]]
    note: str | None = None
    is_undefined: bool = False
    is_proportion: bool = False

    @property
    def value(self) -> float | None:
        """The metric of the whole set; None if undefined or without examples."""
        if self.is_undefined or not len(self.counts):
            return None
        return float(self.compute_value(self.total)[0])

    @property
    def total(self) -> Float64[np.ndarray, "1 K"]:
        """The sums of the whole set."""
        total: Float64[np.ndarray, "1 K"] = self.counts.sum(axis=0, keepdims=True)
        return total

    def sum_counts(self, weights: Float64[np.ndarray, "B N"]) -> Float64[np.ndarray, "B K"]:
        """The sums of B sets. weights: how often each example, or group of examples, is in a set."""
        sums: Float64[np.ndarray, "B K"] = weights @ self.counts
        return sums

    def group(self, groups: Sequence[int]) -> "Tally":
        """The same value, but examples of one group (0, 1, …) are drawn together. groups: of each example."""
        counts = np.zeros((max(groups) + 1, self.counts.shape[1]))
        np.add.at(counts, groups, self.counts)
        return replace(self, counts=counts)

    def align(self, other: "Tally") -> tuple["Tally", "Tally"]:
        """Both systems' tallies with sums that can be mixed: some examples of one system, and some of the other."""
        return self, other


def tally_mean(per_example: Float64[np.ndarray, " N"], note: str | None = None, *, is_undefined: bool = False) -> Tally:
    """The tally of a metric whose value is the mean over examples."""
    counts = np.stack([per_example, np.ones_like(per_example)], axis=1)
    return Tally(per_example, counts, lambda sums: sums[:, 0] / sums[:, 1], note, is_undefined)


def tally_share(
    per_example: Float64[np.ndarray, " N"], note: str | None = None, *, is_undefined: bool = False
) -> Tally:
    """The tally of a share of examples; per_example is 0 or 1."""
    return replace(tally_mean(per_example, note, is_undefined=is_undefined), is_proportion=True)


def tally_best(
    hypotheses: Sequence[T],
    references: Sequence[Sequence[T]],
    compare: Callable[[T, T], float],
    select: Callable[..., float] = max,
) -> Tally:
    """The tally of a mean: compare each hypothesis with all its references; `select` picks the best value."""
    values = [
        select(compare(hypothesis, text) for text in texts)
        for hypothesis, texts in zip(hypotheses, references, strict=True)
    ]
    return tally_mean(np.array(values, np.float64))
