"""Intervals and p-values compared with their expected statistics."""

import numpy as np
import pytest

from lorgnette.metrics import bootstrap
from lorgnette.metrics.bleu import bleu
from lorgnette.metrics.bootstrap import (
    compare_tallies,
    compute_intervals,
    compute_newcombe_interval,
    compute_wilson_interval,
)
from lorgnette.metrics.score import tally_mean


def test_the_interval_of_a_mean_is_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    ((low, high),) = compute_intervals([tally_mean(values)], num_resamples=4000)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_intervals_cover_the_true_value_in_95_percent() -> None:
    rng = np.random.default_rng(1)
    intervals = [compute_intervals([tally_mean(rng.random(60))], num_resamples=300, seed=i)[0] for i in range(300)]
    assert 0.90 <= np.mean([low <= 0.5 <= high for low, high in intervals]) <= 0.98


def test_intervals_depend_on_the_seed_not_on_other_metrics() -> None:
    a, b = tally_mean(np.arange(9.0)), tally_mean(np.arange(9.0)[::-1])
    assert compute_intervals([a])[0] == compute_intervals([b, a])[1]
    assert compute_intervals([a], seed=1) != compute_intervals([a], seed=2)


def test_many_examples_are_resampled_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = tally_mean(np.arange(50.0))
    in_one_batch = compute_intervals([tally], num_resamples=37)
    monkeypatch.setattr(bootstrap, "_MAX_CELLS", 120)
    assert compute_intervals([tally], num_resamples=37) == in_one_batch


def test_a_resampled_corpus_metric_equals_a_new_computation() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.choice(list("abc"), size=6).tolist() for _ in range(40)]
    references = [[rng.choice(list("abc"), size=6).tolist()] for _ in range(40)]
    tally = bleu(texts, references)[1]
    indices = np.random.default_rng(3).integers(40, size=40)
    weights = np.bincount(indices, minlength=40).astype(float)[None]
    expected = bleu([texts[i] for i in indices], [references[i] for i in indices])[1].value
    assert tally.compute_value(weights @ tally.counts)[0] == pytest.approx(expected, rel=1e-12)


def test_a_difference_is_significant_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(300)
    better, noisy = tally_mean(first + 0.05 + 0.01 * rng.random(300)), tally_mean(first + rng.normal(0, 0.05, 300))
    difference = compare_tallies("m", tally_mean(first), better)
    assert difference.value == pytest.approx(0.055, abs=0.001)
    assert difference.interval is not None
    assert 0.05 < difference.interval[0] < difference.interval[1] < 0.06
    assert difference.p_value == pytest.approx(1 / 1001)
    same = compare_tallies("m", tally_mean(first), noisy)
    assert same.p_value is not None
    assert same.p_value > 0.05


def test_p_values_of_equal_systems_are_uniform() -> None:
    rng = np.random.default_rng(5)
    p_values = [
        compare_tallies("m", tally_mean(rng.random(40)), tally_mean(rng.random(40)), 199, i).p_value or 0
        for i in range(300)
    ]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert 0.4 <= np.mean(np.array(p_values) <= 0.5) <= 0.6


def test_swapping_systems_changes_the_sign() -> None:
    rng = np.random.default_rng(0)
    a, b = tally_mean(rng.random(50)), tally_mean(rng.random(50))
    forward, backward = compare_tallies("m", a, b), compare_tallies("m", b, a)
    assert forward.value == -(backward.value or 0)
    assert forward.p_value == pytest.approx(backward.p_value, abs=0.1)
    assert forward.per_example == tuple(-value for value in backward.per_example)


def test_a_system_does_not_differ_from_itself() -> None:
    tally = tally_mean(np.arange(5.0))
    difference = compare_tallies("m", tally, tally)
    assert (difference.value, difference.interval, difference.p_value) == (0, (0, 0), 1)


def test_one_example_has_no_interval_and_an_undefined_metric_no_difference() -> None:
    one = compare_tallies("m", tally_mean(np.ones(1)), tally_mean(np.zeros(1)))
    assert (one.value, one.per_example, one.interval, one.p_value) == (-1, (-1,), None, None)
    undefined = compare_tallies("m", tally_mean(np.ones(1), is_undefined=True), tally_mean(np.ones(1)))
    assert (undefined.value, undefined.per_example) == (None, ())


def test_the_intervals_of_shares_are_those_of_the_papers() -> None:
    """Newcombe, Statistics in Medicine 1998: 81 of 263 has Wilson's interval 0.2553 to 0.3662, and 56 of 70 minus 48 of
    80 the interval 0.0524 to 0.3339."""
    assert compute_wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert compute_newcombe_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_a_share_at_the_end_has_an_interval_within_its_bounds() -> None:
    low, high = compute_wilson_interval(1.0, 16, 0.9)
    assert (low, high) == (pytest.approx(0.8553614, abs=1e-7), 1.0)
    assert compute_wilson_interval(0.0, 16, 0.9) == (0.0, pytest.approx(1 - low))
    assert compute_wilson_interval(1.0, 16, 0.95)[0] < low
    with pytest.raises(ValueError, match="no examples"):
        compute_wilson_interval(0.0, 0)
