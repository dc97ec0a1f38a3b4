"""A rank as a process: its signals, its end, and the thread that watches all ranks.

No rank stays behind. If one fails, the others end within seconds, also those that wait inside of an exchange. If the
process that started the ranks is killed, they save and end as after TERM.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lorgnette.errors import LorgnetteError
from lorgnette.rank_status import (
    ROW,
    Outcome,
    RankStatus,
    StalledRankError,
    VictimError,
    describe_rank,
    find_cause,
    is_gone,
)

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

SAID_SECONDS = 60.0
"""Without progress, until the terminal says so."""
LIMIT_SECONDS = 600.0
"""Without progress, until the run ends."""
PERIOD = 1.0
"""Seconds between two looks at all ranks."""
LEAVE_SECONDS = 15.0
"""How long a rank may go on after another one failed: to finish a checkpoint that is being written."""
STOP_SECONDS = 300.0
"""How long a rank that was stopped waits for the others: rank 0 saves."""
STUCK_SECONDS = 2.0
"""How long all others wait in an exchange until a rank that was stopped is sure that they wait for it."""

SILENT_SECONDS = 2.0
"""How long rank 0 waits in an exchange after Ctrl-C, which it cannot see there, until the parent speaks for it."""


class Watchdog:
    """A thread that says which rank the others wait for, and ends this process if waiting is no use.

    say: prints a line, on the rank with the terminal. store: of torch, if the ranks share no memory.
    """

    def __init__(self, status: RankStatus, say: Callable[[str], None], store: "Store | None" = None) -> None:
        self._status, self._say = status, say
        # A connection of its own: the other one may wait long.
        self._store = store and store.clone()  # type: ignore[attr-defined]
        self._has_parent_to_speak = store is None
        self.sees_others = True
        self._keys = [f"rank_status/{rank}" for rank in range(status.size)]
        self._parent = os.getppid()
        self._beats, self._seen = np.full(status.size, -1), np.full(status.size, time.monotonic())
        self._said: set[bytes] = set()
        self._cause_since: float | None = None
        self._stuck_since: float | None = None
        self._lock, self._is_over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.exchange_rows()

    def _run(self) -> None:
        while not self._is_over.is_set():
            row = self._status.row
            row["num_beats"] += 1
            row["seconds"] = time.monotonic() - row["since"]
            self.exchange_rows()
            self._check_parent()
            self._check_cause()
            self._check_stop()
            self._check_progress()
            self._is_over.wait(PERIOD)

    def exchange_rows(self) -> None:
        """Write this rank's row to the store and read the others. If the store is gone, so is its process."""
        table, rank = self._status.table, self._status.rank
        with self._lock:
            if self._store is None:
                return
            try:
                self._exchange_rows(self._store, table, rank)
            except RuntimeError:
                self._store, self.sees_others = None, False

    def _exchange_rows(self, store: "Store", table: NDArray[Any], rank: int) -> None:
        store.set(self._keys[rank], table[rank].tobytes().rstrip(b"\0"))
        if store.check(self._keys):
            for other, row in enumerate(store.multi_get(self._keys)):
                if other != rank:
                    table[other : other + 1] = np.frombuffer(bytes(row).ljust(ROW.itemsize, b"\0"), ROW)

    def _check_parent(self) -> None:
        """Stop as after TERM if the process that started this one is gone."""
        if os.getppid() != self._parent:
            self._parent = os.getppid()
            os.kill(os.getpid(), signal.SIGTERM)

    def _check_cause(self) -> None:
        """End this process some time after another one failed: its exchange may never return.

        At once if the others say that this one hangs.
        """
        cause = find_cause(self._status.table)
        if cause is None or self._status.row["outcome"] != Outcome.RUNNING:
            return
        self._cause_since = self._cause_since or time.monotonic()
        if cause.rank == self._status.rank or time.monotonic() - self._cause_since >= LEAVE_SECONDS:
            self._end(VictimError(cause))

    def _check_stop(self) -> None:
        """End this process if it waits for one that was stopped: Python sees a signal only after the exchange.

        That of gloo breaks when the other process ends; that of NCCL may never return.
        """
        row = self._status.row
        is_stuck = row["outcome"] == Outcome.RUNNING and row["is_waiting"]
        if not is_stuck or not (self._status.table["outcome"] == Outcome.STOPPED).any():
            self._stuck_since = None
            return
        self._stuck_since = self._stuck_since or time.monotonic()
        if time.monotonic() - self._stuck_since >= LEAVE_SECONDS:
            self._status.record_end(Outcome.STOPPED)
            self.exchange_rows()
            leave_process(128 + signal.SIGINT)

    def _check_progress(self) -> None:
        """Say, and later end, that ranks wait for one that makes no progress."""
        # Without beats the whole process stands still, or its machine is gone.
        table, now = self._status.table.copy(), time.monotonic()
        has_beat = table["num_beats"] != self._beats
        self._beats, self._seen = table["num_beats"].copy(), np.where(has_beat, now, self._seen)
        idle = np.maximum(table["seconds"], now - self._seen)
        is_running = table["outcome"] == Outcome.RUNNING
        waits = is_running & table["is_waiting"] & (now - self._seen < SAID_SECONDS)
        if not waits.any() or find_cause(table):
            return
        others = np.flatnonzero(is_running & ~waits)
        stalled = [rank for rank in others if idle[rank] >= SAID_SECONDS]
        waited = float(idle[waits].max())
        if waited < SAID_SECONDS or (len(others) and not stalled):
            return

        # All wait: no rank alone is to blame.
        rank = int(max(stalled or np.flatnonzero(waits), key=lambda rank: idle[rank]))
        seconds = min(waited, float(idle[rank]))
        where = describe_rank(table, rank) if stalled else f"all ranks wait: {describe_rank(table, rank)}"
        if seconds >= LIMIT_SECONDS and table["is_bounded"][rank]:
            hint = "the checkpoints before it are on disk; see the output of this rank in the run's folder ranks/"
            self._end(StalledRankError(rank, f"no progress for {seconds:.0f} s", hint))
        key = b"%d %d %s" % (rank, table["step"][rank], table["phase"][rank])
        if key not in self._said:
            self._said.add(key)
            if self._status.rank == find_speaker(table):
                self._say(f"{where}: no progress for {seconds:.0f} s; the other ranks wait")

    def _end(self, error: LorgnetteError) -> NoReturn:
        """End this process now: its main thread may never run again."""
        self._status.record_error(error)
        self.exchange_rows()
        if self._status.rank == find_speaker(self._status.table) and not self._has_parent_to_speak:
            self._say(str(find_cause(self._status.table) or error))
        leave_process(1)


def find_speaker(table: NDArray[Any]) -> int:
    """The rank that prints what concerns all: the first whose process did not vanish."""
    return next((r for r in range(len(table)) if table["outcome"][r] != Outcome.RUNNING or not is_gone(table, r)), 0)


@contextmanager
def watch_ranks(status: RankStatus, say: Callable[[str], None], store: "Store | None" = None) -> Iterator[None]:
    """Watch the other ranks in the block, and record how this rank ends.

    A rank that is stopped waits until the others have stopped, so that rank 0 can save, unless they wait for it. say,
    store: as in Watchdog.
    """
    with Watchdog(status, say, store) as watchdog:
        try:
            yield
        except KeyboardInterrupt:
            status.record_end(Outcome.STOPPED)
            _wait_for_others(status, watchdog)
            raise
        except BaseException as error:
            status.record_error(error)
            raise
        status.record_end(Outcome.DONE)


def _wait_for_others(status: RankStatus, watchdog: Watchdog) -> None:
    table, now = status.table, time.monotonic()
    end, last_busy = now + STOP_SECONDS, now
    while now < end and now < last_busy + STUCK_SECONDS:
        watchdog.exchange_rows()
        others = [r for r in range(status.size) if table["outcome"][r] == Outcome.RUNNING and not is_gone(table, r)]
        if not watchdog.sees_others or not others:
            return
        if not table["is_waiting"][others].all():
            last_busy = now
        time.sleep(0.05)
        now = time.monotonic()


@contextmanager
def wait_for_ranks(table: NDArray[Any], say: Callable[[str], None]) -> Iterator[None]:
    """In the process that forked the ranks: leave the block, after a signal too, when none of them runs.

    Ctrl-C raises SignalException, as other signals do in torch's agent. A second one goes to the ranks alone, which
    then do not save; those that do not end either are killed. say: prints a line if rank 0 cannot.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    is_stopping = False

    def on_ctrl_c(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if not is_stopping:
            is_stopping = True
            _start_timer(SILENT_SECONDS, _say_that_rank_0_waits, table, say)
            raise SignalException("Ctrl-C", signal.SIGINT)
        _send(signal.SIGINT, table["pid"][table["outcome"] == Outcome.RUNNING])
        _start_timer(LEAVE_SECONDS, _kill_ranks, table)

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, on_ctrl_c)
    try:
        yield
    except SignalException:
        end = time.monotonic() + STOP_SECONDS
        while pids := _find_children(table):
            with suppress(SignalException):
                time.sleep(0.05)
            if time.monotonic() > end:
                _send(signal.SIGKILL, pids)
        raise


def _start_timer(seconds: float, function: Callable[..., None], *arguments: Any) -> None:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()


def _say_that_rank_0_waits(table: NDArray[Any], say: Callable[[str], None]) -> None:
    """Its own answer to Ctrl-C comes after the exchange."""
    row, waited = table[0], time.monotonic() - table["since"][0]
    if row["outcome"] == Outcome.RUNNING and row["is_waiting"] and waited >= SILENT_SECONDS:
        say("stopping, but rank 0 waits for another rank; press Ctrl-C again to stop at once without saving")


def _kill_ranks(table: NDArray[Any]) -> None:
    """Kill the ranks that still run, as stopped ones."""
    is_running = table["outcome"] == Outcome.RUNNING
    table["outcome"][is_running] = Outcome.STOPPED
    _send(signal.SIGKILL, table["pid"][is_running])


def _find_children(table: NDArray[Any]) -> list[int]:
    pids = set(table["pid"].tolist())
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None and child.pid in pids]


def _send(number: int, pids: Iterable[int]) -> None:
    for pid in filter(None, pids):  # 0: of a rank that has not begun
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def end_with_parent() -> None:
    """Let the death of the process that started this one count as TERM, and no key of its terminal reach this one."""
    if os.getpgrp() != os.getpid():  # torchrun has done it
        os.setpgrp()
    with suppress(ImportError):  # a private name; the watchdog looks too, once a second
        from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

        _prctl_pr_set_pdeathsig(signal.SIGTERM)


def leave_process(exit_status: int) -> NoReturn:
    """End this process without waiting for its threads or for other ranks."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_status)
