"""Runs and times a program: its output goes to a file, its children end with it, and it has a time limit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

NUM_LAST_LINES = 8


class FailedError(Exception):
    """The program failed or exceeded its limit. The message has the exit status and the last lines of output."""


def run(
    command: Sequence[str],
    output: Path,
    limit: float,
    *,
    is_done: Callable[[], bool] = lambda: False,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Return the seconds until the program ended, or until `is_done()`: then end it and everything it started."""
    output.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with output.open("w") as file:
        # Its own process group, so its children can be ended; the same session, so that it ends with us.
        child = subprocess.Popen(command, stdout=file, stderr=file, cwd=cwd, env=environment, process_group=0)
        try:
            while child.poll() is None and not is_done():
                if time.monotonic() - start > limit:
                    raise FailedError(_append_last_lines(f"exit status none after {limit:.0f} s", output))
                time.sleep(0.02)
            seconds = time.monotonic() - start
        finally:
            end(child)
    if child.returncode != 0 and not is_done():
        raise FailedError(_append_last_lines(f"exit status {child.returncode}", output))
    return seconds


def end(child: subprocess.Popen[bytes]) -> None:
    """Its children, too, those in process groups of their own included: torchrun starts its ranks so."""
    others = list_descendants(child.pid)
    with suppress(ProcessLookupError):  # it may have ended already, and its children too
        os.killpg(child.pid, signal.SIGKILL)
    for number in others:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    child.wait()


def list_descendants(number: int) -> list[int]:
    """The ids of the processes that this process has started, and of those that they have, on Linux."""
    parents = dict[int, int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [number]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def _append_last_lines(message: str, output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([message, *lines[-NUM_LAST_LINES:]])
