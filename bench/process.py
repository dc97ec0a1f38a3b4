"""A program that is timed: its output in a file, its children ended with it, and never longer than its limit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LAST_LINES = 8


class FailedError(Exception):
    """It ended in an error or was cut off; says which, and the last lines it wrote."""


def run(
    command: Sequence[str],
    said: Path,
    limit: float,
    *,
    done: Callable[[], bool] = lambda: False,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Seconds until it ended, or until `done()` held: then it is ended, with everything it started."""
    said.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with said.open("w") as file:
        # A group of its own, to end its children too, but no session of its own: what ends us must end it.
        child = subprocess.Popen(command, stdout=file, stderr=file, cwd=cwd, env=environment, process_group=0)
        try:
            while child.poll() is None and not done():
                if time.monotonic() - begun > limit:
                    raise FailedError(_last(f"exit status none after {limit:.0f} s", said))
                time.sleep(0.02)
            seconds = time.monotonic() - begun
        finally:
            end(child)
    if child.returncode != 0 and not done():
        raise FailedError(_last(f"exit status {child.returncode}", said))
    return seconds


def end(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # it may have ended, and its children too
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last(first: str, said: Path) -> str:
    return "\n".join([first, *said.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]])
