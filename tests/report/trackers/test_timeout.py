"""A call returns in time, raises its error, or is abandoned."""

import threading
import time

import pytest

from lorgnette.report.trackers.timeout import call_with_timeout


def test_a_result_in_time_is_returned() -> None:
    assert call_with_timeout(5, lambda: "yes") == "yes"
    assert call_with_timeout(5, lambda: None) is None


def test_an_error_is_raised_in_the_caller() -> None:
    with pytest.raises(KeyError, match="no"):
        call_with_timeout(5, lambda: {}["no"])


def test_a_call_that_takes_too_long_is_abandoned() -> None:
    end = threading.Event()
    before = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        call_with_timeout(0.05, lambda: end.wait(20))
    assert time.monotonic() - before < 5
    end.set()
