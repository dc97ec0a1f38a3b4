"""The first signal stops after the step, a second Ctrl-C at once; what was ignored at the start stays ignored."""

import io
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from lorgnette.rank_status import RankStatus, allocate_table
from lorgnette.report.console import Terminal
from lorgnette.training.interrupt import STOP_SIGNALS, GracefulInterrupt, StopSignals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of this process, and a check that they are restored."""
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    yield
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_the_first_ctrl_c_requests_a_stop_and_the_second_stops(
    terminal: Terminal, terminal_output: io.StringIO
) -> None:
    with GracefulInterrupt(terminal) as interrupt:
        assert not interrupt.is_requested
        send(signal.SIGINT)
        assert interrupt.is_requested
        assert "stopping after this step; press Ctrl-C again to stop at once" in terminal_output.getvalue()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_term_and_hup_request_a_stop(terminal: Terminal, terminal_output: io.StringIO, number: signal.Signals) -> None:
    """Often they come twice: from the system and from a shell."""
    with StopSignals() as outer:
        with GracefulInterrupt(terminal) as interrupt:
            for repeated in (number, number, signal.SIGHUP, signal.SIGTERM):
                send(repeated)
            assert interrupt.is_requested
            assert terminal_output.getvalue().count("stopping after this step") == 1
            assert f"{number.name}: " in terminal_output.getvalue()
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)
        assert outer.number is None
        with pytest.raises(KeyboardInterrupt):
            interrupt.stop()
        assert outer.number == number


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_interrupts_a_command_once(number: signal.Signals) -> None:
    with StopSignals() as stop:
        with pytest.raises(KeyboardInterrupt):
            send(number)
        send(signal.SIGTERM)
        send(signal.SIGHUP)
        assert not stop.is_repeated
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.is_repeated
    assert stop.number == number


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(terminal: Terminal, number: signal.Signals) -> None:
    """As nohup ignores HUP, and a script's background job Ctrl-C."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as stop, GracefulInterrupt(terminal) as interrupt:
            send(number)
            assert signal.getsignal(number) is signal.SIG_IGN
        assert stop.number is None
        assert not interrupt.is_requested
    finally:
        signal.signal(number, before)


def test_the_agents_signal_after_a_failure_says_nothing(terminal: Terminal, terminal_output: io.StringIO) -> None:
    """torch's agent ends the ranks because one has failed: there is no next step."""
    table = allocate_table(2)
    own, other = (RankStatus(rank, table) for rank in range(2))
    for number in range(2):
        with GracefulInterrupt(terminal, own) as interrupt:
            send(signal.SIGTERM)
            assert interrupt.is_requested
        assert terminal_output.getvalue().count("stopping after this step") == 1, number
        other.record_error(ValueError("row 17"))


def test_another_thread_sets_no_handlers(terminal: Terminal) -> None:
    """Only the main thread may."""
    requested: list[bool] = []

    def use() -> None:
        with StopSignals(), GracefulInterrupt(terminal) as interrupt:
            requested.append(interrupt.is_requested)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert requested == [False]
