"""Forked processes do what `map` does, in its order, and leave no process."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io import cores, processes
from lorgnette.io.processes import count_processes, map_in_processes


def square(number: int) -> tuple[int, int]:
    if number == 13:
        raise UsageError("no thirteen", where="here", hint="skip it")
    time.sleep(0.002 * (number % 3))  # results come in another order
    return os.getpid(), number**2


def list_children() -> set[str]:
    return {name for name in os.listdir("/proc") if name.isdecimal() and _read_parent(name) == os.getpid()}


def _read_parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_results_come_in_order_from_several_processes() -> None:
    before = list_children()
    results = list(map_in_processes(square, range(100, 160), 3))
    assert [value for _, value in results] == [number**2 for number in range(100, 160)]
    pids = {pid for pid, _ in results}
    assert len(pids) > 1
    assert os.getpid() not in pids
    assert list_children() == before
    assert {pid for pid, _ in map_in_processes(square, range(3), 1)} == {os.getpid()}


@pytest.mark.parametrize("num_processes", [1, 3])
def test_an_error_is_raised_behind_the_results_before_it(num_processes: int) -> None:
    results, before = list[int](), list_children()

    def tasks() -> Iterator[int]:
        yield from range(9, 13)
        raise LorgnetteError("the file ends here")

    with pytest.raises(LorgnetteError, match="the file ends here"):
        results += [value for _, value in map_in_processes(square, tasks(), num_processes)]
    for _, value in (parts := map_in_processes(square, range(9, 20), num_processes)):
        results.append(value)
        if value == 144:
            break
    with pytest.raises(UsageError, match="no thirteen") as caught:
        next(parts)
    assert (caught.value.where, caught.value.hint) == ("here", "skip it")
    assert results == [81, 100, 121, 144]
    assert list_children() == before


def test_an_early_end_leaves_no_process() -> None:
    before, results = list_children(), map_in_processes(square, iter(range(100, 10**9)), 2)
    next(results)
    assert len(list_children() - before) == 2
    results.close()
    assert list_children() == before


def test_a_process_that_is_killed_is_an_error() -> None:
    def end(number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(LorgnetteError, match="ended with signal 9"):
        list(map_in_processes(end, range(4), 2))


def test_ctrl_c_is_not_for_a_process_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = processes._serve_tasks

    def interrupt_and_serve(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        serve(*arguments)

    monkeypatch.setattr(processes, "_serve_tasks", interrupt_and_serve)
    assert [value for _, value in map_in_processes(square, range(3), 2)] == [0, 1, 4]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_closed_terminal_ends_a_process_without_its_parents_handler() -> None:
    def hang_up(number: int) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return number

    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with pytest.raises(LorgnetteError, match="ended with signal 1 "):
            list(map_in_processes(hang_up, range(4), 2))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        assert list(map_in_processes(hang_up, range(4), 2)) == [0, 1, 2, 3]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    script = """
        import os, sys, time
        from lorgnette.io.processes import map_in_processes
        for pid in map_in_processes(lambda number: os.getpid(), iter(range(10**9)), 2):
            print(pid, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = {parent.stdout.readline().strip() for _ in range(20)}
        parent.kill()
    deadline = time.monotonic() + 10
    while any(_is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_is_running(pid) for pid in pids)


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_limit_of_processes_leaves_the_work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(os, "fork", fail)
    assert {pid for pid, _ in map_in_processes(square, range(3), 2)} == {os.getpid()}


def test_a_limit_of_open_files_leaves_the_work_here() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        results = list(map_in_processes(square, range(3), 2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert {pid for pid, _ in results} == {os.getpid()}


def test_only_a_plain_process_starts_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "torch" in sys.modules or count_processes() >= 1
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(processes.threading, "active_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "_QUOTA", quota)
    monkeypatch.setattr(sys, "platform", "linux")
    assert count_processes() == 6
    quota.write_text("max 100000\n")
    assert count_processes() == 6
    quota.write_text("250000 100000\n")
    assert count_processes() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert count_processes() == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(processes.threading, "active_count", lambda: 2)
    assert count_processes() == 1
    monkeypatch.setattr(processes.threading, "active_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert count_processes() == 1
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert count_processes() == 1
