"""Seconds per stage of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lorgnette.report.log import RunLog
from lorgnette.report.terminal import Terminal


class Stages:
    """Seconds of each stage, said on the terminal and written to the log once there is one."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.seconds: dict[str, float] = {}
        self.log: RunLog | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun
        self._terminal.say(f"{name:<10} {self.seconds[name]:.1f} s")
        if self.log is not None:
            self.log.write({"kind": "stage", "name": name, "seconds": self.seconds[name]})
