import threading
import time

import pytest

from lorgnette.report.trackers.timeout import call_with_timeout


def test_an_answer_in_time_is_given() -> None:
    assert call_with_timeout(5, lambda: "yes") == "yes"
    assert call_with_timeout(5, lambda: None) is None


def test_an_error_is_raised_here() -> None:
    with pytest.raises(KeyError, match="no"):
        call_with_timeout(5, lambda: {}["no"])


def test_what_takes_too_long_is_left_behind() -> None:
    end = threading.Event()
    before = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        call_with_timeout(0.05, lambda: end.wait(20))
    assert time.monotonic() - before < 5
    end.set()
