"""How many cores a process may use. Imports little, because every command asks at its start."""

import os
from contextlib import suppress
from pathlib import Path

MAX_PROCESSES = 16
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def count_cores(num_sharing: int = 1) -> int:
    """The cores for each of `num_sharing` processes like this one, at least 1 and at most MAX_PROCESSES.

    They share those that the system and its container grant.
    """
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = _QUOTA.read_text().split()
        granted = min(granted, int(quota) // int(period))
    return max(1, min(granted // num_sharing, MAX_PROCESSES))
