"""Starts the processes that train together, one for each GPU.

    lorgnette train … gpus=4                  this process reads the data, then forks four ranks and watches them
    torchrun --nproc-per-node 4 … train …     torchrun starts four; each reads the data itself

torch's elastic agent, which torchrun is made of, forks and watches. A forked rank shares the parent's examples: memory
is copied only where it is written. The parent never touches CUDA, which a forked process could not use any more.
"""

import gc
import logging
import os
import pickle
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray
from rich.console import Console

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.planning.gpus import find_gpus, parse_num_gpus
from lorgnette.rank_status import RankError, RankStatus, allocate_table, find_cause, restore_error
from lorgnette.report.console import Terminal
from lorgnette.training.interrupt import STOP_SIGNALS, StopSignals
from lorgnette.training.rank_process import end_with_parent, leave_process, wait_for_ranks, watch_ranks

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from lorgnette.distributed import World

NumGpus = int | Literal["all"] | str | None
SHUTDOWN_SECONDS = 300
"""From a signal to the agent until ranks that have not saved and ended are killed."""
_LOOPBACK = "127.0.0.1"


def count_ranks(gpus: NumGpus, device: str) -> int:
    """The processes that this one has to start; 1: it trains alone, or is itself one of several.

    gpus: a number, or `all` that CUDA_VISIBLE_DEVICES shows; None: 1. Raises UsageError for more than there are.
    """
    where = f"gpus={gpus}"
    if is_rank():
        world_size = os.environ["WORLD_SIZE"]
        if gpus is not None and str(gpus) != world_size:
            message = f"torchrun has started {world_size} processes"
            raise UsageError(message, where=where, hint=f"leave gpus out, or write gpus={world_size}")
        if device == "mps":
            raise UsageError("device=mps is not several GPUs", where="torchrun", hint="start one process alone")
        return 1
    number = parse_num_gpus(gpus)
    if number == 1 or (number is not None and device == "cpu"):
        return number
    if device in ("cpu", "mps"):
        hint = "write the number of processes, such as gpus=2" if device == "cpu" else "leave gpus out"
        raise UsageError(f"device={device} is not several GPUs", where=where, hint=hint)
    found = len(find_gpus())
    if found == 0 or (number is not None and number > found):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
        shown = "no GPU" if found == 0 else f"{found} GPU{'s' if found > 1 else ''}"
        hint = f"gpus={found}, or gpus=all" if found else "gpus=2 device=cpu starts two processes on the CPU"
        raise UsageError(f"this machine shows {shown}{seen}", where=where, hint=hint)
    return number or found


def is_rank() -> bool:
    """Whether torchrun, or an agent like it, started this process as one of several. Imports torch only then."""
    if "WORLD_SIZE" not in os.environ:
        return False
    from lorgnette.distributed import has_world

    return has_world()


def start_ranks(size: int, device: str, folder: Path, train: Callable[["World"], None]) -> None:
    """Call `train(world)` in `size` forked processes, and wait for them.

    device: the setting. folder: gets what ranks but the first print. Raises what the first rank that failed raised;
    KeyboardInterrupt if a signal ended the ranks, after they have saved.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise _build_cuda_error(size)
    device_type = "cpu" if device == "cpu" else "cuda"
    folder.mkdir(exist_ok=True)
    has_threads = _has_threads()
    store = _open_store()
    table = allocate_table(size)
    with tempfile.TemporaryFile() as error_file:
        rank_job = _RankJob(device_type, folder, table, error_file, has_threads, train)
        gc.freeze()  # a collection in a rank would write to the pages that it shares
        try:
            with _keep_signal_handlers(), _log_agent(folder), wait_for_ranks(table, Terminal().warn):
                elastic_launch(_build_launch_config(size, store.port), rank_job.run)()
        except (SignalException, ChildFailedError) as error:
            failures = error.failures if isinstance(error, ChildFailedError) else {}
            exit_codes = {rank: failure.exitcode for rank, failure in failures.items()}
            if cause := find_cause(table, exit_codes):
                raise _load_error(folder, error_file, cause) from None
            _raise_interrupt(error.sigval if isinstance(error, SignalException) else _find_signal(exit_codes.values()))
        finally:
            gc.unfreeze()


def select_card(environment: MutableMapping[str, str] = os.environ) -> None:
    """Show this rank its own GPU only, which is then cuda:0. Must come before CUDA starts.

    Raises LorgnetteError if the machine has fewer GPUs than ranks.
    """
    local_rank, visible = int(environment["LOCAL_RANK"]), environment.get("CUDA_VISIBLE_DEVICES")
    cards = None if visible is None else [card.strip() for card in visible.split(",")]
    if cards is not None and local_rank >= len(cards):
        where = f"rank {environment['RANK']} on {socket.gethostname()}"
        message = f"CUDA_VISIBLE_DEVICES={visible} shows no GPU number {local_rank}"
        raise LorgnetteError(message, where=where, hint="start one process for each GPU")
    environment["CUDA_VISIBLE_DEVICES"] = str(local_rank) if cards is None else cards[local_rank]


@dataclass(frozen=True)
class _RankJob:
    """What a forked rank does.

    error_file: gets an exception of the first. has_threads: whether the parent has others than the one that forks.
    """

    device_type: str
    folder: Path
    table: NDArray[Any]
    error_file: IO[bytes]
    has_threads: bool
    train: Callable[["World"], None]

    def run(self) -> None:
        """Never returns an error to the agent: it ends the process with 1, or 128 plus the signal's number."""
        end_with_parent()
        rank = int(os.environ["RANK"])
        with redirect_output(self.folder / f"rank-{rank}.log" if rank > 0 else None):
            self._run_under_watchdog(rank)

    def _run_under_watchdog(self, rank: int) -> None:
        status, stop = RankStatus(rank, self.table), StopSignals()
        say = Terminal().warn if rank == 0 else build_rank_terminal().warn
        try:
            with stop, watch_ranks(status, say):
                self._train(status)
            return
        except KeyboardInterrupt:
            exit_status = 128 + (stop.number or signal.SIGINT)
        except BaseException as error:  # the parent raises it
            exit_status = 1
            if rank == 0:
                _save_error(self.error_file, error)
            elif not isinstance(error, LorgnetteError):
                with (self.folder / f"rank-{rank}.log").open("a", encoding="utf-8") as log:
                    traceback.print_exc(file=log)
        leave_process(exit_status)

    def _train(self, status: RankStatus) -> None:
        import torch

        from lorgnette.distributed import join_world, leave_world

        if self.device_type == "cuda":
            if torch.cuda._is_in_bad_fork():
                raise _build_cuda_error(status.size)
            select_card()
        if self.has_threads:  # a notebook's kernel has; with more than one, OpenMP would wait for threads of the parent
            torch.set_num_threads(1)
        elif "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // status.size))
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the host's name resolves to
        world = join_world(self.device_type, status)
        self.train(world)
        sys.stdout.flush()  # an error of this, too, is the run's
        leave_world(world)


def _has_threads() -> bool:
    """Whether this process has several threads, those of C++ libraries included. False where the system does not say.

    A forked process has none of them. GNU's OpenMP does not notice that: its next parallel loop never ends.
    """
    threads = Path("/proc/self/task")
    return threads.is_dir() and len(list(threads.iterdir())) > 1


def _build_cuda_error(size: int) -> UsageError:
    hint = "restart it, or run `lorgnette train` in a terminal"
    return UsageError("CUDA is in use in this process, so it cannot start others", where=f"gpus={size}", hint=hint)


def build_rank_terminal() -> Terminal:
    """For ranks but the first: prints to standard error, which is a file, also in a notebook."""
    return Terminal(Console(file=sys.stderr, force_terminal=False, force_jupyter=False, color_system=None))


def _open_store() -> "TCPStore":
    """A store at a free port that the agent can open too.

    torch shares the port between the stores of a process. Where the port is that of an earlier store, closed since, the
    first attempt to share it fails.
    """
    from torch.distributed import DistNetworkError, TCPStore  # type: ignore[attr-defined]

    while True:
        store = TCPStore(_LOOPBACK, 0, is_master=True, multi_tenant=True)
        with suppress(DistNetworkError):
            TCPStore(_LOOPBACK, store.port, is_master=True, multi_tenant=True)
            return store


def _build_launch_config(size: int, port: int) -> Any:
    from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    class NoLogs(LogsSpecs):
        """The ranks redirect what they print themselves."""

        root_log_dir = ""

        def reify(self, envs: Mapping[int, Mapping[str, str]]) -> LogsDest:
            nothing = dict.fromkeys(envs, "")
            return LogsDest(stdouts=dict(nothing), stderrs=dict(nothing), error_files=dict(nothing))

    # wait_for_ranks handles Ctrl-C.
    signals = [s for s in STOP_SIGNALS if s != signal.SIGINT and signal.getsignal(s) != signal.SIG_IGN]
    options: dict[str, Any] = {
        "run_id": f"{os.getpid()}", "rdzv_backend": "static", "rdzv_endpoint": f"{_LOOPBACK}:{port}",
        "rdzv_configs": {"rank": 0}, "max_restarts": 0, "monitor_interval": 0.1, "start_method": "fork",
        "logs_specs": NoLogs(), "shutdown_timeout": SHUTDOWN_SECONDS,
        "signals_to_handle": ",".join(s.name for s in signals),
    }  # fmt: skip
    known = {field.name for field in fields(LaunchConfig)}  # torch 2.11 has fewer
    # The configuration asks whether there is CUDA; through NVML the parent stays without.
    before = os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    try:
        return LaunchConfig(1, 1, size, **{name: value for name, value in options.items() if name in known})
    finally:
        if before is None:
            del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
        else:
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = before


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """The agent sets handlers and leaves them."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextmanager
def _log_agent(folder: Path) -> Iterator[None]:
    """Write what the agent logs into a file, not to the terminal: the parent says what failed."""
    handler = logging.FileHandler(folder / "agent.log", delay=True)
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagates) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagates
        handler.close()


@contextmanager
def redirect_output(path: Path | None) -> Iterator[None]:
    """Append all that this process and its libraries print in the block to the file. None: print it as ever."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, LorgnetteError):
            stream.flush()
    before = {standard: os.dup(standard) for standard in (1, 2)}
    with (
        path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log,
        redirect_stdout(log), redirect_stderr(log),  # in a notebook these are not the standard streams
    ):  # fmt: skip
        for standard in before:
            os.dup2(log.fileno(), standard)
        try:
            yield
        finally:
            for standard, descriptor in before.items():
                os.dup2(descriptor, standard)
                os.close(descriptor)


def _raise_interrupt(number: int) -> None:
    """Raise KeyboardInterrupt; the handler from before learns the signal."""
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, None)
    raise KeyboardInterrupt


def _find_signal(exit_codes: Iterable[int]) -> int:
    """The signal that ended ranks. exit_codes: 128 plus its number, or below 0 that of a process without a handler."""
    return max(code - 128 if code > 128 else -code for code in exit_codes)


def _save_error(file: IO[bytes], error: BaseException) -> None:
    """Keep an exception of the first rank, which calls the user's callbacks. Those for the user are in the table."""
    if isinstance(error, LorgnetteError | OSError):
        return
    error.add_note("".join(traceback.format_exception(error)))
    try:
        content = pickle.dumps((error, error.__notes__))
        pickle.loads(content)  # noqa: S301 - its own
    except Exception:  # a user's exception may refuse in any way, one with arguments of its own only when it is read
        content = pickle.dumps((RuntimeError("".join(traceback.format_exception(error))), []))
    with suppress(OSError):  # a full disk: the table has its message
        file.write(content)
        file.flush()


def _load_error(folder: Path, file: IO[bytes], cause: RankError) -> BaseException:
    """What ended the ranks, for the command."""
    file.seek(0)
    if cause.rank == 0 and (content := file.read()):
        error, notes = pickle.loads(content)  # noqa: S301 - a rank wrote it, into a file without a name
        error.__notes__ = notes  # which some classes lose
        loaded: BaseException = error
        return loaded
    log = folder / f"rank-{cause.rank}.log"
    cause.hint = cause.hint or f"see its output: {log}"
    return restore_error(cause)
