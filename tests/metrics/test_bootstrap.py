"""Intervals and chances against what statistics says they must be."""

import numpy as np
import pytest

from lorgnette.metrics import bootstrap
from lorgnette.metrics.bleu import bleu
from lorgnette.metrics.bootstrap import difference, intervals
from lorgnette.metrics.score import mean


def test_a_means_interval_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    ((low, high),) = intervals([mean(values)], samples=4000)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    found = [intervals([mean(rng.random(60))], samples=300, seed=i)[0] for i in range(300)]
    assert 0.90 <= np.mean([low <= 0.5 <= high for low, high in found]) <= 0.98


def test_the_same_seed_gives_the_same_whatever_stands_beside() -> None:
    one, other = mean(np.arange(9.0)), mean(np.arange(9.0)[::-1])
    assert intervals([one])[0] == intervals([other, one])[1]
    assert intervals([one], seed=1) != intervals([one], seed=2)


def test_many_examples_are_resampled_a_few_sets_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = mean(np.arange(50.0))
    at_once = intervals([tally], samples=37)
    monkeypatch.setattr(bootstrap, "_CELLS", 120)
    assert intervals([tally], samples=37) == at_once


def test_a_corpus_metric_is_resampled_as_a_corpus() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.choice(list("abc"), size=6).tolist() for _ in range(40)]
    references = [[rng.choice(list("abc"), size=6).tolist()] for _ in range(40)]
    tally = bleu(texts, references)[1]
    drawn = np.random.default_rng(3).integers(40, size=40)
    weights = np.bincount(drawn, minlength=40).astype(float)[None]
    afresh = bleu([texts[i] for i in drawn], [references[i] for i in drawn])[1].value
    assert tally.value_of(weights @ tally.counts)[0] == pytest.approx(afresh, rel=1e-12)


def test_a_difference_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(300)
    better, alike = mean(first + 0.05 + 0.01 * rng.random(300)), mean(first + rng.normal(0, 0.05, 300))
    found = difference("m", mean(first), better)
    assert found.value == pytest.approx(0.055, abs=0.001)
    assert found.interval is not None
    assert 0.05 < found.interval[0] < found.interval[1] < 0.06
    assert found.chance == pytest.approx(1 / 1001)
    same = difference("m", mean(first), alike)
    assert same.chance is not None
    assert same.chance > 0.05


def test_chances_are_even_where_nothing_differs() -> None:
    rng = np.random.default_rng(5)
    chances = [difference("m", mean(rng.random(40)), mean(rng.random(40)), 199, i).chance or 0 for i in range(300)]
    assert 0.02 <= np.mean(np.array(chances) <= 0.05) <= 0.09
    assert 0.4 <= np.mean(np.array(chances) <= 0.5) <= 0.6


def test_a_difference_turns_its_sign_with_the_systems() -> None:
    rng = np.random.default_rng(0)
    one, other = mean(rng.random(50)), mean(rng.random(50))
    there, back = difference("m", one, other), difference("m", other, one)
    assert there.value == -(back.value or 0)
    assert there.chance == pytest.approx(back.chance, abs=0.1)
    assert there.per_example == tuple(-value for value in back.per_example)


def test_a_system_differs_from_itself_by_nothing() -> None:
    tally = mean(np.arange(5.0))
    found = difference("m", tally, tally)
    assert (found.value, found.interval, found.chance) == (0, (0, 0), 1)


def test_one_example_has_no_interval_and_nothing_no_difference() -> None:
    one = difference("m", mean(np.ones(1)), mean(np.zeros(1)))
    assert (one.value, one.per_example, one.interval, one.chance) == (-1, (-1,), None, None)
    nothing = difference("m", mean(np.ones(1), nothing=True), mean(np.ones(1)))
    assert (nothing.value, nothing.per_example) == (None, ())
