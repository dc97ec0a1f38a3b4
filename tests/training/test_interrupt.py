"""The first Ctrl-C stops after the step, the second at once."""

import io
import os
import signal

import pytest

from lorgnette.report.console import Terminal
from lorgnette.training.interrupt import GracefulInterrupt


def test_the_first_ctrl_c_requests_a_stop_and_the_second_stops(terminal: Terminal, said: io.StringIO) -> None:
    before = signal.getsignal(signal.SIGINT)
    with GracefulInterrupt(terminal) as interrupt:
        assert not interrupt.is_requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.is_requested
        assert "stopping after this step; press Ctrl-C again to stop at once" in said.getvalue()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
