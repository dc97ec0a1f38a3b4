"""Measures the seconds of each stage of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorgnette.rank_status import RankStatus
from lorgnette.report.console import Terminal
from lorgnette.report.run_log import RunLog

UNBOUNDED = ("transformers", "weights", "adapter")
"""Stages that may take long without a sign of progress: a slow disk."""


class StageTimer:
    """Prints the seconds of each stage, and writes them to the log while one is attached.

    with timer("weights"): …

    The log also has `end_s`, when the stage ended: seconds since the command was started. What lies between the end of
    a stage and the start of the next is in no stage. A part of a stage has no end.
    """

    def __init__(self, terminal: Terminal, command_start: float | None = None) -> None:
        """command_start: `startup.get_command_start`. The first stage, `start`, lasts from then until now. Without it
        seconds count from now."""
        now = time.perf_counter()
        self._terminal = terminal
        self._origin = now if command_start is None else command_start
        self._log: RunLog | None = None
        self._unlogged: list[dict[str, Any]] = []
        self._status = RankStatus()
        if command_start is not None:
            self._write("start", now - command_start, end_s=now - command_start)

    @contextmanager
    def __call__(self, name: str, *, is_printed: bool = True) -> Iterator[None]:
        start = time.perf_counter()
        with self._status.phase(name, is_bounded=name not in UNBOUNDED):
            yield
        end = time.perf_counter()
        if is_printed:
            self._terminal.print(f"{name:<10} {end - start:.1f} s")
        self._write(name, end - start, end_s=end - self._origin)

    def record(self, name: str, seconds: float) -> None:
        """Write the seconds of a part of a stage to the log only."""
        self._write(name, seconds)

    def _write(self, name: str, seconds: float, **fields: float) -> None:
        record = {"kind": "stage", "name": name, "seconds": seconds, **fields}
        if self._log is None:
            self._unlogged.append(record)
        else:
            self._log.write(record)

    def attach_status(self, status: RankStatus) -> None:
        """Name the stages there from now on, for the other ranks."""
        self._status = status

    @contextmanager
    def attach_log(self, log: RunLog) -> Iterator[None]:
        """Write to this log inside, first the stages that no log has yet."""
        for record in self._unlogged:
            log.write(record)
        self._log, self._unlogged = log, []
        try:
            yield
        finally:
            self._log = None
