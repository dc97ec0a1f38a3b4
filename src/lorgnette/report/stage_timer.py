"""Measures the seconds of each stage of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lorgnette.rank_status import RankStatus
from lorgnette.report.console import Terminal
from lorgnette.report.run_log import RunLog

UNBOUNDED = ("transformers", "weights", "adapter")
"""Stages that may take long without a sign of progress: a slow disk."""


class StageTimer:
    """Prints the seconds of each stage, and writes them to the log once one is attached.

    with timer("weights"): …
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._log: RunLog | None = None
        self._unlogged: list[tuple[str, float]] = []
        self._status = RankStatus()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with self._status.phase(name, is_bounded=name not in UNBOUNDED):
            yield
        seconds = time.perf_counter() - start
        self._terminal.print(f"{name:<10} {seconds:.1f} s")
        self.record(name, seconds)

    def record(self, name: str, seconds: float) -> None:
        """Write the seconds of a stage, or of a part of one, to the log only."""
        if self._log is None:
            self._unlogged.append((name, seconds))
        else:
            self._log.write({"kind": "stage", "name": name, "seconds": seconds})

    def attach_status(self, status: RankStatus) -> None:
        """Name the stages there from now on, for the other ranks."""
        self._status = status

    def attach_log(self, log: RunLog) -> None:
        """Write to this log from now on, starting with the stages measured before."""
        self._log = log
        for name, seconds in self._unlogged:
            self.record(name, seconds)
