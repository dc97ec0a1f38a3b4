"""Intervals and chances against what statistics says they must be."""

import numpy as np
import pytest

from lorgnette.metrics import bootstrap
from lorgnette.metrics.bleu import bleu
from lorgnette.metrics.bootstrap import compare_tallies, compute_intervals
from lorgnette.metrics.score import tally_mean


def test_a_means_interval_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    ((low, high),) = compute_intervals([tally_mean(values)], num_resamples=4000)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    found = [compute_intervals([tally_mean(rng.random(60))], num_resamples=300, seed=i)[0] for i in range(300)]
    assert 0.90 <= np.mean([low <= 0.5 <= high for low, high in found]) <= 0.98


def test_the_same_seed_gives_the_same_whatever_stands_beside() -> None:
    one, other = tally_mean(np.arange(9.0)), tally_mean(np.arange(9.0)[::-1])
    assert compute_intervals([one])[0] == compute_intervals([other, one])[1]
    assert compute_intervals([one], seed=1) != compute_intervals([one], seed=2)


def test_many_examples_are_resampled_a_few_sets_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = tally_mean(np.arange(50.0))
    at_once = compute_intervals([tally], num_resamples=37)
    monkeypatch.setattr(bootstrap, "_MAX_CELLS", 120)
    assert compute_intervals([tally], num_resamples=37) == at_once


def test_a_corpus_metric_is_resampled_as_a_corpus() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.choice(list("abc"), size=6).tolist() for _ in range(40)]
    references = [[rng.choice(list("abc"), size=6).tolist()] for _ in range(40)]
    tally = bleu(texts, references)[1]
    drawn = np.random.default_rng(3).integers(40, size=40)
    weights = np.bincount(drawn, minlength=40).astype(float)[None]
    afresh = bleu([texts[i] for i in drawn], [references[i] for i in drawn])[1].value
    assert tally.compute_value(weights @ tally.counts)[0] == pytest.approx(afresh, rel=1e-12)


def test_a_difference_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(300)
    better, alike = tally_mean(first + 0.05 + 0.01 * rng.random(300)), tally_mean(first + rng.normal(0, 0.05, 300))
    found = compare_tallies("m", tally_mean(first), better)
    assert found.value == pytest.approx(0.055, abs=0.001)
    assert found.interval is not None
    assert 0.05 < found.interval[0] < found.interval[1] < 0.06
    assert found.p_value == pytest.approx(1 / 1001)
    same = compare_tallies("m", tally_mean(first), alike)
    assert same.p_value is not None
    assert same.p_value > 0.05


def test_chances_are_even_where_nothing_differs() -> None:
    rng = np.random.default_rng(5)
    chances = [
        compare_tallies("m", tally_mean(rng.random(40)), tally_mean(rng.random(40)), 199, i).p_value or 0
        for i in range(300)
    ]
    assert 0.02 <= np.mean(np.array(chances) <= 0.05) <= 0.09
    assert 0.4 <= np.mean(np.array(chances) <= 0.5) <= 0.6


def test_a_difference_turns_its_sign_with_the_systems() -> None:
    rng = np.random.default_rng(0)
    one, other = tally_mean(rng.random(50)), tally_mean(rng.random(50))
    there, back = compare_tallies("m", one, other), compare_tallies("m", other, one)
    assert there.value == -(back.value or 0)
    assert there.p_value == pytest.approx(back.p_value, abs=0.1)
    assert there.per_example == tuple(-value for value in back.per_example)


def test_a_system_differs_from_itself_by_nothing() -> None:
    tally = tally_mean(np.arange(5.0))
    found = compare_tallies("m", tally, tally)
    assert (found.value, found.interval, found.p_value) == (0, (0, 0), 1)


def test_one_example_has_no_interval_and_nothing_no_difference() -> None:
    one = compare_tallies("m", tally_mean(np.ones(1)), tally_mean(np.zeros(1)))
    assert (one.value, one.per_example, one.interval, one.p_value) == (-1, (-1,), None, None)
    nothing = compare_tallies("m", tally_mean(np.ones(1), is_undefined=True), tally_mean(np.ones(1)))
    assert (nothing.value, nothing.per_example) == (None, ())
