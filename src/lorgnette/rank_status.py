"""What each rank does at this moment, for the other ranks and for the process that started them.

A table has a row for each rank: its step and phase, whether it waits for others, and how it ended. Ranks that one
process forked share the table's memory. Others copy their rows through torch's store (training/rank_process.py).

If one rank fails, the others fail too, because their exchange breaks. `find_cause` tells the first from those.
"""

import functools
import mmap
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorgnette.errors import LorgnetteError, UsageError

VICTIM_SECONDS = 5.0
"""How long a rank whose exchange fails looks for the cause: another rank has ended, and that may not be known yet."""

ROW = np.dtype(
    [
        ("pid", np.int64), ("pid_namespace", np.int64), ("machine", "S64"),
        # Set by the rank's main thread. since: seconds of its monotonic clock.
        ("step", np.int64), ("phase", "S40"), ("is_waiting", np.bool_), ("is_bounded", np.bool_),
        ("since", np.float64),
        # Set by its watchdog. seconds: without progress.
        ("num_beats", np.int64), ("seconds", np.float64),
        # Set at its end. time: of the wall clock; cause: the rank whose failure the texts explain.
        ("outcome", np.int64), ("exit_status", np.int64), ("time", np.float64), ("cause", np.int64),
        ("message", "S1000"), ("where", "S2000"), ("hint", "S600"),
    ]
)  # fmt: skip
_TEXTS = ("message", "where", "hint")


class Outcome(IntEnum):
    """How a rank ended. VICTIM: it failed because another rank did."""

    RUNNING = 0
    DONE = 1
    STOPPED = 2
    VICTIM = 3
    FAILED = 4


def allocate_table(size: int) -> NDArray[Any]:
    """Rows for `size` ranks, in memory that processes forked later share."""
    return np.frombuffer(mmap.mmap(-1, size * ROW.itemsize), ROW)


class RankStatus:
    """The row of this rank, and those of all. Without a table it is the only rank."""

    def __init__(self, rank: int = 0, table: NDArray[Any] | None = None) -> None:
        """table: of `allocate_table`."""
        self.rank, self.table = rank, np.zeros(1, ROW) if table is None else table
        self.row = self.table[rank]
        self.row["pid"], self.row["pid_namespace"] = os.getpid(), _find_pid_namespace()
        self.row["machine"] = _find_machine()
        self._set("start", is_waiting=False, is_bounded=True)

    @property
    def size(self) -> int:
        return len(self.table)

    def start_step(self, step: int) -> None:
        """Say which step this rank computes, from 1."""
        self.row["step"] = step
        self.report_progress()

    def report_progress(self) -> None:
        """Say that the phase goes on: at each part of a long one."""
        self.row["since"] = time.monotonic()

    @contextmanager
    def phase(self, name: str, *, is_bounded: bool = True) -> Iterator[None]:
        """Say what this rank does in the block. An exception leaves it said, for the message.

        is_bounded: a phase without progress is an error after some minutes (training/rank_process.py).
        """
        with self._enter(name, is_waiting=False, is_bounded=is_bounded):
            yield

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Say that this rank waits for others in the block: they, not this one, may hang."""
        with self._enter(self.row["phase"].decode(), is_waiting=True, is_bounded=bool(self.row["is_bounded"])):
            yield

    @contextmanager
    def _enter(self, name: str, *, is_waiting: bool, is_bounded: bool) -> Iterator[None]:
        row = self.row
        before = row["phase"].decode(), bool(row["is_waiting"]), bool(row["is_bounded"])
        self._set(name, is_waiting=is_waiting, is_bounded=is_bounded)
        yield
        self._set(before[0], is_waiting=before[1], is_bounded=before[2])

    def _set(self, name: str, *, is_waiting: bool, is_bounded: bool) -> None:
        row = self.row
        row["phase"], row["is_waiting"], row["is_bounded"] = name.encode(), is_waiting, is_bounded
        row["since"] = time.monotonic()

    def explain_broken_exchange(self, error: Exception) -> LorgnetteError:
        """Why an exchange with the other ranks failed. Waits until the rank that caused it is known, some seconds."""
        end = time.monotonic() + VICTIM_SECONDS
        while (cause := find_cause(self.table)) is None and time.monotonic() < end:
            time.sleep(0.05)
        return BrokenExchangeError(str(error)) if cause is None else VictimError(cause)

    def record_error(self, error: BaseException) -> None:
        """Write how this rank failed."""
        outcome = Outcome.VICTIM if isinstance(error, BrokenExchangeError | VictimError) else Outcome.FAILED
        if self.row["outcome"] == Outcome.RUNNING:
            self.row["cause"] = error.rank if isinstance(error, VictimError | StalledRankError) else self.rank
            explained = explain_exception(error)
            for name in _TEXTS:
                self.row[name] = _cut(getattr(explained, name) or "", ROW[name].itemsize)
            self.record_end(outcome, get_exit_status(error))

    def record_end(self, outcome: Outcome, exit_status: int = 0) -> None:
        """Write how this rank ended, if it is not written already."""
        row = self.row
        if row["outcome"] == Outcome.RUNNING:
            row["exit_status"], row["time"] = exit_status, time.time()
            row["outcome"] = outcome  # last: it makes the others valid


class BrokenExchangeError(LorgnetteError):
    """An exchange failed, and no rank is known to have caused it."""

    def __init__(self, text: str) -> None:
        line = text.strip().splitlines()[0] if text.strip() else ""
        hint = "look at the network between the machines, and at the output of the other ranks"
        super().__init__(f"the connection with the other ranks is lost: {line[-200:]}", hint=hint)


class VictimError(LorgnetteError):
    """This rank fails because another one did. rank: that one."""

    def __init__(self, cause: "RankError") -> None:
        super().__init__(cause.message, where=cause.where, hint=cause.hint)
        self.rank, self.exit_status = cause.rank, cause.exit_status


class StalledRankError(LorgnetteError):
    """A rank makes no progress, and others wait. rank: that one."""

    def __init__(self, rank: int, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.rank = rank


class RankError(LorgnetteError):
    """The failure that ended all ranks. rank: where it happened."""

    def __init__(self, rank: int, message: str, where: str | None, hint: str | None, exit_status: int) -> None:
        super().__init__(message, where=where, hint=hint)
        self.rank, self.exit_status = rank, exit_status


def find_cause(table: NDArray[Any], exit_codes: Mapping[int, int] | None = None) -> RankError | None:
    """The failure that ended the ranks; None if none is known.

    exit_codes: of the ranks that their agent saw end, by rank; below 0 the signal. Without them a rank of this machine
    whose process is gone counts as one.
    """
    # What a rank says of its own failure, or of one that hangs. What all say alike of themselves is of none alone.
    ranks, outcomes = range(len(table)), table["outcome"]
    failed = sorted((rank for rank in ranks if outcomes[rank] == Outcome.FAILED), key=lambda rank: table["time"][rank])
    if failed:
        row = table[failed[0]]
        alike = [rank for rank in failed if table["message"][rank] == row["message"]]
        is_of_all = len(alike) == len(table) and all(table["cause"][rank] == rank for rank in alike)
        return _read_error(table, min(alike), names_rank=not is_of_all)

    # A process that is gone without a word.
    for rank in ranks:
        code = (exit_codes or {}).get(rank)
        if outcomes[rank] == Outcome.RUNNING and (code or is_gone(table, rank)):
            message, hint = _explain_exit(code)
            return RankError(rank, message, describe_rank(table, rank), hint, 1)

    # What a rank of another machine knows.
    victims = [rank for rank in ranks if outcomes[rank] == Outcome.VICTIM]
    victims.sort(key=lambda rank: table["cause"][rank] == rank)
    return _read_error(table, victims[0], names_rank=table["cause"][victims[0]] == victims[0]) if victims else None


def describe_rank(table: NDArray[Any], rank: int) -> str:
    """`rank 1 of 4 on HOST in step 5: images`."""
    machine, step, phase = (table[name][rank] for name in ("machine", "step", "phase"))
    text = f"rank {rank} of {len(table)} on {machine.decode() or 'an unknown machine'}"
    return f"{text}{f' in step {step}' if step else ''}: {phase.decode() or 'start'}"


def explain_exception(error: BaseException) -> LorgnetteError:
    """The error as one line for the user."""
    if isinstance(error, LorgnetteError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        remedy = "check its path, its permissions and the disk"
        return LorgnetteError(str(error.strerror), where=str(error.filename or "a file"), hint=remedy)
    line = next(iter(str(error).strip().splitlines()), "")
    return LorgnetteError(f"{type(error).__name__}: {line}" if line else type(error).__name__)


def get_exit_status(error: BaseException) -> int:
    return error.exit_status if isinstance(error, LorgnetteError) else 1


def restore_error(error: RankError) -> LorgnetteError:
    """The error of a rank for the command: a UsageError if that rank had one."""
    cls = UsageError if error.exit_status == UsageError.exit_status else LorgnetteError
    return cls(error.message, where=error.where, hint=error.hint)


def _explain_exit(code: int | None) -> tuple[str, str]:
    """(what, hint) for a process that ended without a word."""
    if code is None:
        return "a process was ended from outside", "the system does this if memory is short: see `dmesg`"
    if code > 0:
        return f"a process ended with status {code}", "see its output in the run's folder ranks/"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if code == -signal.SIGKILL:
        return f"a process was ended by {name}", "the system does this if memory is short: see `dmesg`"
    return f"a process crashed: {name}", "see its output in the run's folder ranks/"


def is_gone(table: NDArray[Any], rank: int) -> bool:
    """Whether the rank's process ran on this machine and does not exist any more."""
    pid, row = int(table["pid"][rank]), table[rank]
    if not pid or row["machine"] != _find_machine() or row["pid_namespace"] != _find_pid_namespace():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _find_machine() -> bytes:
    return socket.gethostname().encode()[:64]


@functools.cache
def _find_pid_namespace() -> int:
    """Tells containers of one host apart, whose process ids mean nothing to each other."""
    path = Path("/proc/self/ns/pid")
    return path.stat().st_ino if path.exists() else 0


def _read_error(table: NDArray[Any], rank: int, *, names_rank: bool) -> RankError:
    """What the rank recorded. names_rank: say where it happened."""
    message, where, hint = (table[name][rank].decode() for name in _TEXTS)
    cause = int(table["cause"][rank])
    if names_rank:
        where = " · ".join(part for part in (where, describe_rank(table, cause)) if part)
    return RankError(cause, message, where or None, hint or None, int(table["exit_status"][rank]))


def _cut(text: str, size: int) -> bytes:
    """UTF-8 of at most this size, cut between characters."""
    return text.encode()[:size].decode(errors="ignore").encode()
