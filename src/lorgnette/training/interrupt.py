"""Signals that stop a command: Ctrl-C, TERM (`kill`, a scheduler) and HUP (the terminal is gone).

A signal that was ignored at the start stays ignored: HUP under nohup, Ctrl-C in a script's background job.
"""

import signal
import threading
from types import FrameType
from typing import Any, NoReturn, Self

from lorgnette.rank_status import RankStatus, find_cause
from lorgnette.report.console import Terminal

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
STOP_SIGNALS = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))


class StopSignals:
    """Each of these signals raises KeyboardInterrupt, as Ctrl-C does, until the block ends.

    number: the first one; None before it. is_repeated: whether Ctrl-C came after it. Does nothing outside of the main
    thread: only that one may set handlers.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_repeated = False
        self._handlers_before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # None: a handler that was not set from Python, and cannot be set again.
            handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            self._handlers_before = {n: old for n, old in handlers.items() if old not in (signal.SIG_IGN, None)}
        for number in self._handlers_before:
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._handlers_before.items():
            signal.signal(number, old)

    def on_first(self, number: int) -> None:
        raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            self.on_first(number)
        elif number == signal.SIGINT:
            self.is_repeated = True
            raise KeyboardInterrupt
        # A repeated TERM or HUP does not disturb the end: a shell and the system both send HUP for a closed terminal.


class GracefulInterrupt(StopSignals):
    """The first signal finishes the step and saves; a second Ctrl-C stops at once."""

    def __init__(self, terminal: Terminal, status: RankStatus | None = None) -> None:
        """status: of this rank among several."""
        super().__init__()
        self._terminal, self._status = terminal, status

    @property
    def is_requested(self) -> bool:
        return self.number is not None

    def on_first(self, number: int) -> None:
        if self._status is not None and self._status.size > 1 and find_cause(self._status.table):
            return  # torch's agent ends the ranks because one has failed: there will be no next step
        name = "" if number == signal.SIGINT else f"{signal.Signals(number).name}: "
        self._terminal.warn(f"{name}stopping after this step; press Ctrl-C again to stop at once without saving")

    def stop(self) -> NoReturn:
        """Raise KeyboardInterrupt, now that everything is saved. The handler from before learns the signal."""
        handler = self._handlers_before.get(self.number or 0)
        if callable(handler):
            handler(self.number, None)
        raise KeyboardInterrupt
