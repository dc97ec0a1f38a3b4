"""Confidence intervals and paired tests, by resampling the examples.

Every metric here is a function of sums over examples (score.Tally), so a resampled set costs one row of a matrix
product. Percentile bootstrap: Efron, Bootstrap Methods: Another Look at the Jackknife, 1979. Paired, for two systems:
Koehn, Statistical Significance Tests for Machine Translation Evaluation, EMNLP 2004. Approximate randomization: Riezler
and Maxwell, On Some Pitfalls in Automatic Evaluation and Significance Testing for MT, 2005. Score interval of a share:
Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 1927. Of the difference of two:
Newcombe, Interval Estimation for the Difference Between Independent Proportions, Statistics in Medicine 1998.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

from lorgnette.metrics.score import Tally

NUM_RESAMPLES = 1000
_MAX_CELLS = 4_000_000
_TOLERANCE = 1e-12
"""Differences this close are equal: the sums add the same floats in another order."""
_MIN_WIDTH = 1e-6
"""A narrower interval is none: BLEU's smoothing alone moves its value by 1e-9."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Second system minus first, on the same examples.

    interval: 95 % paired bootstrap confidence interval.
    p_value:  two-sided: how often two equal systems would differ at least this much.
    """

    name: str
    value: float | None
    per_example: tuple[float, ...]
    interval: tuple[float, float] | None = None
    p_value: float | None = None

    @property
    def shown_interval(self) -> tuple[float, float] | None:
        """None also if all examples differ alike: resampling then shows no uncertainty."""
        return self.interval if self.interval and self.interval[1] - self.interval[0] > _MIN_WIDTH else None

    def negate(self) -> "Difference":
        """First system minus second."""
        if self.value is None:
            return self
        interval = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return Difference(self.name, -self.value, tuple(-value for value in self.per_example), interval, self.p_value)


def compute_intervals(
    tallies: Sequence[Tally], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> list[tuple[float, float] | None]:
    """95 % intervals of metrics of the same examples, all from the same resampled sets.

    Where all resampled sets have one value, a share has Wilson's interval, and another metric none.
    """
    sums = _sum_resamples(tallies, num_resamples, _make_bootstrap_sampler(seed))
    intervals = [_compute_interval(tally.compute_value(part)) for tally, part in zip(tallies, sums, strict=True)]
    return [
        (low, high)
        if high - low > _MIN_WIDTH
        else compute_wilson_interval((low + high) / 2, len(tally.counts))
        if tally.is_proportion
        else None
        for tally, (low, high) in zip(tallies, intervals, strict=True)
    ]


def compare_tallies(
    name: str, first: Tally, second: Tally, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Difference:
    """The difference of two systems in one metric. Its value is None if the metric is undefined. A single example has
    no interval and no p-value."""
    if first.value is None or second.value is None:
        return Difference(name, None, ())
    value = second.value - first.value
    per_example = tuple((second.per_example - first.per_example).tolist())
    if len(first.counts) == 1:
        return Difference(name, value, per_example)
    # Paired bootstrap: the same resampled examples for both systems.
    first_sums, second_sums = _sum_resamples([first, second], num_resamples, _make_bootstrap_sampler(seed))
    interval = _compute_interval(second.compute_value(second_sums) - first.compute_value(first_sums))
    # Approximate randomization: each example changes systems with probability 1/2.
    rng = np.random.default_rng(seed)
    first, second = first.align(second)
    of_first, of_second = _sum_resamples(
        [first, second], num_resamples, lambda b, n: rng.integers(2, size=(b, n)).astype(np.float64)
    )
    shift = of_first - of_second
    swapped = first.compute_value(second.total + shift) - first.compute_value(first.total - shift)
    num_as_large = int((np.abs(swapped) >= abs(value) - _TOLERANCE).sum())
    return Difference(name, value, per_example, interval, (1 + num_as_large) / (1 + num_resamples))


def compute_wilson_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` examples, two-sided. level: of confidence, 0 … 1.

    Raises ValueError without examples.
    """
    if count < 1:
        raise ValueError("a share of no examples has no interval")
    z = NormalDist().inv_cdf((1 + level) / 2)
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, center - half), min(1.0, center + half)


def compute_newcombe_interval(
    first: float, first_count: int, second: float, second_count: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of first share minus second, of different examples: Newcombe's method 10, from Wilson's intervals."""
    first_low, first_high = compute_wilson_interval(first, first_count, level)
    second_low, second_high = compute_wilson_interval(second, second_count, level)
    value = first - second
    low = value - math.hypot(first - first_low, second_high - second)
    return low, value + math.hypot(first_high - first, second - second_low)


_WeightSampler = Callable[[int, int], Float64[np.ndarray, "B N"]]


def _make_bootstrap_sampler(seed: int) -> _WeightSampler:
    """How often each of n examples is in each of b sets of n, drawn with replacement."""
    rng = np.random.default_rng(seed)

    def draw(b: int, n: int) -> Float64[np.ndarray, "B N"]:
        indices = rng.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
        return np.bincount(indices.ravel(), minlength=b * n).reshape(b, n).astype(np.float64)

    return draw


def _sum_resamples(
    tallies: Sequence[Tally], num_resamples: int, draw: _WeightSampler
) -> list[Float64[np.ndarray, "B K"]]:
    """Per metric its sums over `num_resamples` drawn sets, in batches."""
    num_rows = len(tallies[0].counts)
    batch_size = max(1, _MAX_CELLS // max(1, num_rows))
    sums = []
    for start in range(0, num_resamples, batch_size):
        weights = draw(min(batch_size, num_resamples - start), num_rows)
        sums.append([tally.sum_counts(weights) for tally in tallies])
    return [np.concatenate(parts) for parts in zip(*sums, strict=True)]


def _compute_interval(values: Float64[np.ndarray, " B"]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high
