"""How sure a value is: resampling the examples, not the texts.

Every metric here is a function of sums over examples (score.Tally), so a resampled set costs one row of a matrix
product. Percentile bootstrap: Efron, Bootstrap Methods: Another Look at the Jackknife, 1979; paired, for two systems:
Koehn, Statistical Significance Tests for Machine Translation Evaluation, EMNLP 2004; approximate randomisation: Riezler
and Maxwell, On Some Pitfalls in Automatic Evaluation and Significance Testing for MT, 2005.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from lorgnette.metrics.score import Tally

NUM_RESAMPLES = 1000
_MAX_CELLS = 4_000_000
_TOLERANCE = 1e-12
"""Two differences this close are one: what is left of adding floats in another order."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Second system minus first, on the same examples.

    interval: 95 % paired bootstrap confidence interval.
    chance:   two-sided p: how often systems that differ by name only would be this far apart.
    """

    name: str
    value: float | None
    per_example: tuple[float, ...]
    interval: tuple[float, float] | None = None
    p_value: float | None = None


def compute_intervals(
    tallies: Sequence[Tally], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> list[tuple[float, float]]:
    """95 % intervals of metrics of the same examples, all from the same resampled sets."""
    sums = _sum_resamples([tally.counts for tally in tallies], num_resamples, _make_bootstrap_sampler(seed))
    return [_compute_interval(tally.compute_value(part)) for tally, part in zip(tallies, sums, strict=True)]


def compare_tallies(
    name: str, first: Tally, second: Tally, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Difference:
    """What lies between two systems' tallies of one metric; None where it means nothing, and for one example."""
    if first.value is None or second.value is None:
        return Difference(name, None, ())
    value = second.value - first.value
    each = tuple((second.per_example - first.per_example).tolist())
    if len(each) == 1:
        return Difference(name, value, each)
    one, other = _sum_resamples([first.counts, second.counts], num_resamples, _make_bootstrap_sampler(seed))
    interval = _compute_interval(second.compute_value(other) - first.compute_value(one))
    (moved,) = _sum_resamples([first.counts - second.counts], num_resamples, _make_swap_sampler(seed))
    swapped = first.compute_value(second.counts.sum(0) + moved) - first.compute_value(first.counts.sum(0) - moved)
    as_far = int((np.abs(swapped) >= abs(value) - _TOLERANCE).sum())
    return Difference(name, value, each, interval, (1 + as_far) / (1 + num_resamples))


_WeightSampler = Callable[[int, int], Float64[np.ndarray, "B N"]]


def _make_bootstrap_sampler(seed: int) -> _WeightSampler:
    """How often each of n examples is in each of b sets of n, drawn with replacement."""
    rng = np.random.default_rng(seed)

    def draw(b: int, n: int) -> Float64[np.ndarray, "B N"]:
        drawn = rng.integers(n, size=(b, n)) + n * np.arange(b)[:, None]
        return np.bincount(drawn.ravel(), minlength=b * n).reshape(b, n).astype(np.float64)

    return draw


def _make_swap_sampler(seed: int) -> _WeightSampler:
    """Which of n examples change systems, each with one half."""
    rng = np.random.default_rng(seed)
    return lambda b, n: rng.integers(2, size=(b, n)).astype(np.float64)


def _sum_resamples(
    counts: Sequence[Float64[np.ndarray, "N K"]], num_resamples: int, draw: _WeightSampler
) -> list[Float64[np.ndarray, "B K"]]:
    """Per metric its sums over `samples` drawn sets, a few sets at a time."""
    whole = np.concatenate(counts, axis=1)
    sums = np.concatenate([draw(b, len(whole)) @ whole for b in _split_batches(num_resamples, len(whole))])
    return np.split(sums, np.cumsum([one.shape[1] for one in counts])[:-1], axis=1)


def _split_batches(num_resamples: int, num_examples: int) -> Iterator[int]:
    at_once = max(1, _MAX_CELLS // max(1, num_examples))
    for start in range(0, num_resamples, at_once):
        yield min(at_once, num_resamples - start)


def _compute_interval(values: Float64[np.ndarray, " B"]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high
