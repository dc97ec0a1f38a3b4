"""Work that forked processes share: a function of many tasks, whose results come in the order of the tasks.

A forked process has the memory of its parent, so tasks and results are all that is sent. Only a process without threads
and without torch forks: a lock that another thread holds would stay locked, and torch's own threads would be missing.
"""

import os
import pickle
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

from lorgnette.errors import LorgnetteError
from lorgnette.io.cores import count_cores
from lorgnette.startup import wait_for_libraries

_MAX_WAITING = 4
"""Results for each process that wait for an earlier one."""
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
T = TypeVar("T")
R = TypeVar("R")


def count_processes() -> int:
    """The processes that share work here; 1 where this process does it alone.

    That is in a notebook or a program that has imported torch or runs threads; outside of Linux, where forking is not
    safe or not there; and on one core, or where a container grants the time of one.
    """
    wait_for_libraries()
    if sys.platform != "linux" or "torch" in sys.modules or threading.active_count() > 1:
        return 1
    return count_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Worker(NamedTuple):
    process: Any
    connection: Connection


class _Failure(NamedTuple):
    """An exception in another process, pickled; its text, if it cannot be."""

    content: bytes


def map_in_processes(function: Callable[[T], R], tasks: Iterable[T], num_processes: int) -> Generator[R, None, None]:
    """function(task) for each task, in order. With one process: in this one, as `map` does it.

    Raises what `function` raises, or the iteration over the tasks, where `map` would. No process is left when the
    iteration ends, or is closed, or when this process dies.
    """
    workers = _start_workers(function, num_processes) if num_processes > 1 else []
    if not workers:
        yield from map(function, tasks)
        return
    is_done = False
    try:
        yield from _share_tasks(tasks, workers)
        is_done = True
    finally:
        for worker in workers:
            worker.connection.close()
            if not is_done:
                worker.process.kill()
        for worker in workers:
            worker.process.join()


def _start_workers(function: Callable[[T], R], num_processes: int) -> list[_Worker]:
    """As many as the system lets start."""
    workers = list[_Worker]()
    context = get_context("fork")
    for _ in range(num_processes):
        try:
            own, other = context.Pipe()
        except OSError:  # the limit of open files is reached
            break
        inherited = [*(worker.connection for worker in workers), own]
        process = context.Process(target=_serve_tasks, args=(function, other, inherited), daemon=True)
        # Until the new process ignores Ctrl-C, this one's handler would run in it, too.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            with warnings.catch_warnings():  # Python counts the threads of libraries such as OpenBLAS, which can fork
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
        except OSError:  # the limit of processes is reached
            own.close()
            break
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            other.close()
        workers.append(_Worker(process, own))
    return workers


def _share_tasks(tasks: Iterable[T], workers: list[_Worker]) -> Iterator[Any]:
    """A worker gets a task when it waits for one: so neither side ever waits to send while the other does."""
    remaining = _TaskQueue(iter(tasks))
    idle, busy = deque(workers), dict[Any, tuple[int, _Worker]]()
    results, num_sent, num_done = dict[int, Any](), 0, 0
    while True:
        has_room = num_sent - num_done < _MAX_WAITING * len(workers)
        if has_room and remaining.has_next() and idle:
            worker = idle.popleft()
            _send(worker, remaining.pop())
            busy[worker.connection] = num_sent, worker
            num_sent += 1
        elif num_done in results:
            result = results.pop(num_done)
            num_done += 1
            if isinstance(result, _Failure):
                raise pickle.loads(result.content)  # noqa: S301  # of our own process
            yield result
        elif busy:
            for connection in wait(list(busy)):
                number, worker = busy.pop(connection)
                results[number] = _receive(worker)
                idle.append(worker)
        else:
            break
    if remaining.failure is not None:
        raise remaining.failure


class _TaskQueue:
    """Prepares one task ahead, while all workers have one. failure: what the iteration raised, if it did; it is raised
    behind the results of the tasks before it."""

    def __init__(self, tasks: Iterator[Any]) -> None:
        self._tasks, self._prepared, self._is_end = tasks, deque[Any](), False
        self.failure: Exception | None = None

    def has_next(self) -> bool:
        if not self._prepared and not self._is_end:
            try:
                self._prepared.append(next(self._tasks))
            except StopIteration:
                self._is_end = True
            except Exception as error:
                self.failure, self._is_end = error, True
        return bool(self._prepared)

    def pop(self) -> Any:
        return self._prepared.popleft()


def _send(worker: _Worker, task: object) -> None:
    try:
        worker.connection.send(task)
    except OSError as error:
        raise _explain_end(worker) from error


def _receive(worker: _Worker) -> Any:
    try:
        return worker.connection.recv()
    except (EOFError, OSError) as error:
        raise _explain_end(worker) from error


def _explain_end(worker: _Worker) -> LorgnetteError:
    worker.process.join(1)
    code = worker.process.exitcode
    message = f"a process that reads rows has ended with {f'signal {-code}' if code and code < 0 else f'status {code}'}"
    return LorgnetteError(message, hint="is there enough memory? on one core no others are started: taskset -c 0 …")


def _serve_tasks(function: Callable[[Any], Any], connection: Connection, inherited: list[Connection]) -> None:
    """Answer tasks until the parent closes its end, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # the parent's handler would end in a traceback
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    for other in inherited:  # else the end of a parent would not be seen
        other.close()
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            result = function(task)
        except Exception as error:
            result = _describe_failure(error)
        try:
            connection.send(result)
        except OSError:  # the parent is gone
            return


def _describe_failure(error: Exception) -> _Failure:
    try:
        content = pickle.dumps(error)
        pickle.loads(content)  # noqa: S301
        return _Failure(content)
    except Exception:  # an exception that takes other arguments
        return _Failure(pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}")))
