"""Histograms count every value once, in the bucket that Prometheus expects."""

import pytest

from lorgnette.server.stats import FIRST_TOKEN_BOUNDS, TOKEN_BOUNDS, Histogram, SchedulerStats


def test_a_value_belongs_to_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.0, 0.1, 0.11, 1.0, 1.01, 50.0):
        histogram.add(value)
    assert histogram.counts == [2, 2, 2]  # a bound is a value of its bucket: "le"
    assert histogram.count == 6
    assert histogram.sum == pytest.approx(52.22)


def test_numbers_begin_at_zero_and_are_not_shared() -> None:
    stats, other = SchedulerStats(), SchedulerStats()
    stats.first_token.add(0.2)
    stats.outcomes["stop"] += 1
    assert (other.first_token.count, other.token.count, other.outcomes["stop"], other.waiting) == (0, 0, 0, 0)
    for bounds in (FIRST_TOKEN_BOUNDS, TOKEN_BOUNDS):
        assert list(bounds) == sorted(set(bounds))
