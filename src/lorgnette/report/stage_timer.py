"""Seconds per stage of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lorgnette.report.console import Terminal
from lorgnette.report.run_log import RunLog


class StageTimer:
    """Seconds of each stage: said on the terminal, and in the log as soon as there is one."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._log: RunLog | None = None
        self._early: list[tuple[str, float]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self._terminal.print(f"{name:<10} {seconds:.1f} s")
        self.record(name, seconds)

    def record(self, name: str, seconds: float) -> None:
        """Seconds within a stage, for the log alone."""
        if self._log is None:
            self._early.append((name, seconds))
        else:
            self._log.write({"kind": "stage", "name": name, "seconds": seconds})

    def attach_log(self, log: RunLog) -> None:
        """Write to this log from now on, and what was measured before it was there."""
        self._log = log
        for name, seconds in self._early:
            self.record(name, seconds)
