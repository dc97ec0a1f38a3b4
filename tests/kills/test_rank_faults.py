"""A run of several ranks ends with one message and leaves no process, whatever happens to a rank or to the command.

The ranks here exchange one vector a step, as those of a training do. `make test-kills` breaks a whole training in each
of these ways.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError
from lorgnette.rank_status import Outcome, RankStatus, allocate_table
from lorgnette.training import rank_process
from lorgnette.training.interrupt import GracefulInterrupt, StopSignals
from lorgnette.training.launch import build_rank_terminal, start_ranks

FAULT_STEP = 3
Fault = Callable[[RankStatus], object]


def raise_error(status: RankStatus) -> None:
    raise LorgnetteError("cannot decode the image", where="a.jpg", hint="replace it")


def raise_defect(status: RankStatus) -> None:
    raise ValueError("row 17")


def kill_self(status: RankStatus) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(status: RankStatus) -> None:
    time.sleep(100)


def signal_parent(number: int) -> Fault:
    return lambda status: os.kill(os.getppid(), number)


def signal_self(number: int) -> Fault:
    return lambda status: os.kill(os.getpid(), number)


def train_until_stopped(fault: Fault, folder: Path) -> Callable[[World], None]:
    """A loop as the trainer's: rank 1 has a fault in step 3; a signal to one rank stops all after the same step."""

    def train(world: World) -> None:
        (folder / f"pid-{world.rank}").write_text(str(os.getpid()))
        with GracefulInterrupt(build_rank_terminal(), world.status) as interrupt:
            for step in range(1, 1000):
                world.status.start_step(step)
                if world.rank == 1 and step == FAULT_STEP:
                    with world.status.phase("images"):
                        fault(world.status)
                vector = torch.tensor([float(interrupt.is_requested)])
                world.all_reduce(vector)
                if vector.item():
                    numbers = [number for number in world.gather_objects(interrupt.number) if number]
                    time.sleep(0.2 if world.rank == 0 else 0.0)
                    (folder / f"saved-{world.rank}-{step}").touch()
                    interrupt.number = numbers[0]
                    interrupt.stop()
                time.sleep(0.01)

    return train


def run_with(fault: Fault, folder: Path, size: int = 3) -> None:
    try:
        start_ranks(size, "cpu", folder / "ranks", train_until_stopped(fault, folder))
    finally:
        for rank in range(size):
            with pytest.raises(ProcessLookupError):
                os.kill(int((folder / f"pid-{rank}").read_text()), 0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (raise_error, r"^cannot decode the image · a.jpg · rank 1 of 3 on \S+ in step 3: images · replace it$"),
        (raise_defect, r"^ValueError: row 17 · rank 1 of 3 on \S+ in step 3: images · see its output: \S+rank-1.log$"),
        (kill_self, r"^a process was ended by SIGKILL · rank 1 of 3 on \S+ in step 3: images · the system"),
    ],
)
def test_the_message_names_the_rank_that_failed(
    fault: Fault, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LorgnetteError, match=message):
        run_with(fault, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert ("ValueError: row 17" in (tmp_path / "ranks" / "rank-1.log").read_text()) == (fault is raise_defect)


def test_a_rank_that_hangs_is_named_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_process, "PERIOD", 0.05)
    monkeypatch.setattr(rank_process, "SAID_SECONDS", 0.5)
    monkeypatch.setattr(rank_process, "LIMIT_SECONDS", 1.5)
    begin = time.monotonic()
    with pytest.raises(LorgnetteError, match=r"^no progress for 2 s · rank 1 of 3 on \S+ in step 3: images · the chec"):
        run_with(hang, tmp_path)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (signal_parent(signal.SIGINT), signal.SIGINT),
        (signal_parent(signal.SIGTERM), signal.SIGTERM),
        (signal_self(signal.SIGTERM), signal.SIGTERM),
    ],
    ids=["ctrl-c", "term", "term-to-a-rank"],
)
def test_a_signal_stops_all_ranks_after_one_step(fault: Fault, number: int, tmp_path: Path) -> None:
    with StopSignals() as stop:
        with pytest.raises(KeyboardInterrupt):
            run_with(fault, tmp_path)
        assert stop.number == number
    saved = sorted(path.name for path in tmp_path.glob("saved-*"))
    assert len(saved) == 3
    assert len({name.rpartition("-")[2] for name in saved}) == 1


def test_a_signal_before_the_first_step_stops_ranks_that_wait(tmp_path: Path) -> None:
    """Such as with images: a rank inside an exchange does not see the signal."""

    def train(world: World) -> None:
        if world.rank == 1:
            time.sleep(0.1)
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(100)
        world.barrier()

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        start_ranks(2, "cpu", tmp_path / "ranks", train)
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize("is_deaf", [False, True])
def test_a_second_ctrl_c_stops_at_once(is_deaf: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a rank that does not look at signals."""
    monkeypatch.setattr(rank_process, "LEAVE_SECONDS", 0.3 if is_deaf else 60.0)

    def train(world: World) -> None:
        with GracefulInterrupt(build_rank_terminal(), world.status):
            if is_deaf:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            world.barrier()
            for _ in range(2 if world.rank else 0):
                os.kill(os.getppid(), signal.SIGINT)
                time.sleep(0.5)
            time.sleep(100)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        start_ranks(2, "cpu", tmp_path / "ranks", train)
    assert time.monotonic() - begin < 10


def test_ctrl_c_is_answered_while_rank_0_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is inside an exchange, and Python sees no signal there."""
    monkeypatch.setattr(rank_process, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(rank_process, "LEAVE_SECONDS", 0.3)

    def train(world: World) -> None:
        if world.rank == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            time.sleep(0.3)
            for _ in range(2):
                os.kill(os.getppid(), signal.SIGINT)
                time.sleep(1.0)
            time.sleep(100)
        with GracefulInterrupt(build_rank_terminal(), world.status):
            world.barrier()

    with pytest.raises(KeyboardInterrupt):
        start_ranks(2, "cpu", tmp_path / "ranks", train)
    assert capfd.readouterr().err.count("stopping, but rank 0 waits for another rank; press Ctrl-C again") == 1


@pytest.mark.parametrize(
    ("changes", "is_said"),
    [({}, True), ({"is_waiting": False}, False), ({"since": 1e12}, False), ({"outcome": Outcome.STOPPED}, False)],
)
def test_rank_0_speaks_for_itself_where_it_can(changes: dict[str, Any], is_said: bool) -> None:
    table, said = allocate_table(2), list[str]()
    for name, value in {"is_waiting": True, **changes}.items():
        table[name][0] = value
    rank_process._say_that_rank_0_waits(table, said.append)
    assert bool(said) == is_said


def test_ranks_whose_command_is_killed_save_and_end(tmp_path: Path) -> None:
    command = os.fork()
    if not command:
        try:
            start_ranks(2, "cpu", tmp_path / "ranks", train_until_stopped(signal_parent(signal.SIGKILL), tmp_path))
        except BaseException:
            traceback.print_exc()
        os._exit(1)  # else it would go on as the test runner
    assert os.WTERMSIG(os.waitpid(command, 0)[1]) == signal.SIGKILL
    end = time.monotonic() + 20
    pids = [int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)]
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.02)
    saved = sorted(path.name for path in tmp_path.glob("saved-*"))
    assert [name.rpartition("-")[0] for name in saved] == ["saved-0", "saved-1"]
    assert len({name.rpartition("-")[2] for name in saved}) == 1


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie: nobody may wait for an orphan here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
