"""How many processes are started, which GPU each gets, where it prints."""

import io
import os
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.planning.gpus import GPUS
from lorgnette.rank_status import RankError, RankStatus, allocate_table
from lorgnette.training import launch
from lorgnette.training.launch import build_rank_terminal, count_ranks, is_rank, redirect_output, select_card

ShowGpus = Callable[[int], None]


@pytest.fixture
def show_gpus(monkeypatch: pytest.MonkeyPatch) -> ShowGpus:
    """show_gpus(2) → a machine with two."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda number: monkeypatch.setattr(launch, "find_gpus", lambda: [GPUS["H100"]] * number)


@pytest.mark.parametrize(
    ("gpus", "device", "expected"),
    [
        (None, "auto", 1), (1, "auto", 1), ("1", "mps", 1), (2, "auto", 2), ("4", "cuda", 4), ("all", "auto", 4),
        (8, "cpu", 8),
    ],
)  # fmt: skip
def test_processes_to_start(show_gpus: ShowGpus, gpus: launch.NumGpus, device: str, expected: int) -> None:
    show_gpus(4)
    assert count_ranks(gpus, device) == expected


@pytest.mark.parametrize(
    ("gpus", "device", "found", "message"),
    [
        (4, "auto", 2, r"this machine shows 2 GPUs · gpus=4 · gpus=2, or gpus=all"),
        (2, "cuda", 1, r"this machine shows 1 GPU · gpus=2"),
        ("all", "auto", 0, r"shows no GPU · gpus=all · gpus=2 device=cpu starts two processes"),
        (2, "mps", 0, r"device=mps is not several GPUs · gpus=2 · leave gpus out"),
        ("all", "cpu", 2, r"device=cpu is not several GPUs · gpus=all · write the number"),
        (0, "auto", 2, r"no number of GPUs · gpus=0 · write a number"),
        (-2, "auto", 2, "no number of GPUs"),
        ("two", "auto", 2, "no number of GPUs"),
        (True, "auto", 2, "no number of GPUs"),
    ],
)  # fmt: skip
def test_what_cannot_be_started(
    show_gpus: ShowGpus, gpus: launch.NumGpus, device: str, found: int, message: str
) -> None:
    show_gpus(found)
    with pytest.raises(UsageError, match=message):
        count_ranks(gpus, device)


def test_hidden_gpus_are_said(show_gpus: ShowGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UsageError, match="1 GPU with CUDA_VISIBLE_DEVICES=3"):
        count_ranks(2, "auto")


def test_torchrun_says_the_number(show_gpus: ShowGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    show_gpus(4)
    assert not is_rank()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_rank()
    assert [count_ranks(gpus, "auto") for gpus in (None, 2, "2")] == [1, 1, 1]
    with pytest.raises(UsageError, match="device=mps is not several GPUs"):
        count_ranks(None, "mps")
    for gpus in (4, "all", 1):
        with pytest.raises(UsageError, match=f"torchrun has started 2 processes · gpus={gpus} · leave gpus out"):
            count_ranks(gpus, "auto")


@pytest.mark.parametrize(
    ("visible", "local_rank", "expected"), [(None, 1, "1"), ("2, 5", 1, "5"), ("GPU-a,MIG-b", 0, "GPU-a")]
)
def test_a_rank_sees_its_own_gpu_alone(visible: str | None, local_rank: int, expected: str) -> None:
    environment = {"LOCAL_RANK": f"{local_rank}", "RANK": "7"}
    environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    select_card(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == expected


def test_a_rank_without_a_gpu_is_named() -> None:
    with pytest.raises(LorgnetteError, match=r"CUDA_VISIBLE_DEVICES=0 shows no GPU number 1 · rank 5 on .*one process"):
        select_card({"LOCAL_RANK": "1", "RANK": "5", "CUDA_VISIBLE_DEVICES": "0"})


def test_output_goes_to_a_file_and_comes_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a notebook's kernel does
    log = tmp_path / "ranks" / "rank-1.log"
    for text in ("one", "two"):
        with redirect_output(log):
            os.write(1, f"{text}\n".encode())
            os.write(2, b"library\n")
            sys.stdout.write("python\n")
            build_rank_terminal().print("terminal")
    with redirect_output(None):
        os.write(1, b"rank 0\n")
    os.write(2, b"after\n")
    assert log.read_text() == "".join(f"{text}\nlibrary\npython\nterminal\n" for text in ("one", "two"))
    assert capfd.readouterr() == ("rank 0\n", "after\n")


class OwnError(Exception):
    pass


class RowError(Exception):
    """Can be written by pickle, but not read."""

    def __init__(self, row: int, fault: str) -> None:
        super().__init__(f"row {row}: {fault}")


class StubbornError(Exception):
    def __reduce__(self) -> str:
        raise pickle.PicklingError("no")


@pytest.mark.parametrize("error", [OwnError("of the user"), StubbornError("of the user"), RowError(1, "of the user")])
def test_an_exception_of_a_callback_reaches_the_caller(tmp_path: Path, error: Exception) -> None:
    """In Python it has its type; its traceback, which is of another process, is a note."""
    file = io.BytesIO()
    try:
        raise error
    except Exception as raised:
        launch._save_error(file, raised)
    cause = RankError(0, "OwnError: of the user", "rank 0", None, 1)
    loaded = launch._load_error(tmp_path, file, cause)
    assert isinstance(loaded, OwnError if isinstance(error, OwnError) else RuntimeError)
    text = f"{loaded}" + "".join(getattr(loaded, "__notes__", []))
    assert "of the user" in text
    assert "raise error" in text
    without = launch._load_error(tmp_path, io.BytesIO(), cause)
    assert f"{without}" == f"OwnError: of the user · rank 0 · see its output: {tmp_path / 'rank-0.log'}"


@pytest.mark.parametrize(("exit_codes", "expected"), [([130, 143], 15), ([130], 2), ([-15], 15), ([1, 143], 15)])
def test_the_signal_that_ended_the_ranks(exit_codes: list[int], expected: int) -> None:
    assert launch._find_signal(exit_codes) == expected


@pytest.mark.parametrize(("has_threads", "expected"), [(False, 2), (True, 1)])
def test_a_rank_of_a_process_with_threads_computes_with_one(
    has_threads: bool, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook: GNU's OpenMP waits for ever for the threads that it had before the fork."""
    before, found = torch.get_num_threads(), list[int]()
    for name in ("WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    table = allocate_table(2)

    def train(world: World) -> None:
        found.append(torch.get_num_threads())

    job = launch._RankJob("cpu", tmp_path, table, io.BytesIO(), has_threads, train)
    torch.set_num_threads(4)
    try:
        job._train(RankStatus(0, table))
    finally:
        torch.set_num_threads(before)
    assert found == [expected]


def test_a_port_of_an_earlier_store_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.13 does: of the first hundred stores of a process three had such a port."""
    earlier, opened = {1, 2}, list[int]()

    class Store:
        def __init__(self, host: str, port: int, *, is_master: bool, multi_tenant: bool) -> None:
            if port in earlier:
                raise torch.distributed.DistNetworkError
            self.port = port or len(opened) + 1
            opened.append(port)

    monkeypatch.setattr(torch.distributed, "TCPStore", Store)
    assert launch._open_store().port == 3
    assert opened == [0, 0, 0, 3]


def test_threads_are_found() -> None:
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait)
    thread.start()
    assert launch._has_threads() == (sys.platform == "linux")
    is_over.set()
    thread.join()
