"""A tally's value follows from its sums."""

import numpy as np

from lorgnette.metrics.score import Score, Tally, tally_mean


def test_a_mean_of_any_multiset() -> None:
    tally = tally_mean(np.array([0.0, 0.5, 1.0]))
    assert tally.value == 0.5
    twice_the_last = np.array([[1.0, 0.0, 2.0]]) @ tally.counts
    assert tally.compute_value(twice_the_last).tolist() == [2 / 3]


def test_an_undefined_tally_has_no_value() -> None:
    assert tally_mean(np.zeros(0)).value is None
    assert tally_mean(np.ones(1), "undefined", is_undefined=True).value is None


def test_a_ratio_of_sums_is_not_the_mean_of_ratios() -> None:
    counts = np.array([[1.0, 1.0], [1.0, 3.0]])
    tally = Tally(counts[:, 0] / counts[:, 1], counts, lambda sums: sums[:, 0] / sums[:, 1])
    assert tally.value == 0.5


def test_scores_are_compared_by_value() -> None:
    assert Score("BLEU-4", 0.5, (0.5,)) == Score("BLEU-4", 0.5, (0.5,), None, None)
