"""The processes of a command: torchrun's ranks agree on the folder and on what they train, before they begin."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.console import Terminal, is_silent_rank
from lorgnette.report.run_dir import RunDir
from lorgnette.training.ranks import Ranks, _check_machines, _describe, _has_gpu_for_each, open_ranks
from tests.ranks import run_ranks


def compare(world: World, differs: bool) -> str:
    inputs = {"settings": "a: 1", "examples": "e1" if differs and world.rank == 1 else "e0", "weights": "w"}
    try:
        Ranks(1, world).check_same(inputs)
    except LorgnetteError as error:
        return str(error)
    return ""


def test_ranks_that_read_the_same_train() -> None:
    assert run_ranks(compare, 2, False) == ["", ""]


def test_a_rank_with_other_data_is_named_on_all() -> None:
    messages = run_ranks(compare, 3, True)
    assert len(set(messages)) == 1
    host = os.uname().nodename
    assert messages[0].startswith(f"rank 1 on {host} has other examples than rank 0 on {host} · torchrun · give all")


def open_folder(world: World, path: Path) -> tuple[str, bool, list[str]]:
    opened = []

    @contextmanager
    def lock() -> Iterator[RunDir]:
        opened.append("first")
        with RunDir.create(path).lock(print) as locked:
            yield locked

    with Ranks(1, world).open_run(lock()) as run_dir:
        world.barrier()
        files = sorted(child.name for child in path.iterdir())
        world.barrier()
    return f"{run_dir.path}", bool(opened), files


def test_the_first_rank_alone_opens_the_folder(tmp_path: Path) -> None:
    """The others learn its path, which is that of the first rank's machine."""
    first, second = run_ranks(open_folder, 2, tmp_path / "run")
    assert first == (f"{tmp_path / 'run'}", True, [".lock"])
    assert second == (f"{tmp_path / 'run'}", False, [".lock"])


@pytest.fixture
def outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NNODES", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("outside_slurm")
def test_slurm_that_gives_more_machines_is_refused(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each machine would train a world of its own."""
    _check_machines(1)
    monkeypatch.setenv("SLURM_NNODES", "2")
    _check_machines(2)
    message = r"SLURM has given 2 machines, and torchrun's world has 1 · .* --rdzv-endpoint"
    with pytest.raises(UsageError, match=message):
        _check_machines(1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")  # one process on each of two machines that did not meet
    with pytest.raises(UsageError, match=message), open_ranks(None, "cpu", terminal):
        pass
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")  # of the step of srun, which may use fewer
    with open_ranks(None, "cpu", terminal):
        pass


@pytest.mark.usefixtures("outside_slurm")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SLURM_STEP_NUM_TASKS", "SLURM has started 4 tasks, and each trains alone; "),
        ("SLURM_NNODES", "SLURM has given 4 machines, and this training uses one; "),
    ],
)
def test_what_slurm_gave_in_vain_is_said(
    name: str, said: str, terminal: Terminal, terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "4")
    with open_ranks(None, "cpu", terminal) as ranks:
        assert ranks == Ranks(1)
    assert said in terminal_output.getvalue()


@pytest.mark.parametrize(
    ("device", "found", "expected"),
    [
        ("auto", 0, False), ("auto", 4, True), ("cuda", 5, True),
        ("cuda", 0, r"4 processes on .*, which shows 0 GPUs · device=cuda · use device=cpu"),
        ("auto", 2, r"4 processes on .*, which shows 2 GPUs · device=auto · start torchrun with --nproc-per-node=2"),
    ],
)  # fmt: skip
def test_a_machine_has_a_gpu_for_each_rank(
    device: str, found: int, expected: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    if isinstance(expected, bool):
        assert _has_gpu_for_each(device) is expected
    else:
        with pytest.raises(LorgnetteError, match=expected):
            _has_gpu_for_each(device)


@pytest.mark.usefixtures("outside_slurm")
def test_the_number_of_gpus_and_machines_is_said(terminal: Terminal, terminal_output: io.StringIO) -> None:
    with open_ranks(3, "cpu", terminal) as ranks, ranks.open_run(nullcontext(RunDir(Path("run")))) as run_dir:
        assert run_dir.resume_command == "lorgnette train --resume run gpus=3"
        assert (ranks.num_to_start, ranks.is_main, ranks.broadcast("mine")) == (3, True, "mine")
    assert terminal_output.getvalue() == "ranks      3 processes on the CPU on 1 machine\n"
    assert _describe(8, 2, "cuda") == "8 GPUs on 2 machines"


def test_the_first_rank_alone_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_silent_rank({})
    assert not is_silent_rank({"WORLD_SIZE": "1", "RANK": "0"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        Terminal().print(f"remark of {rank}")
        Terminal().print_result(f"result of {rank}")
    assert capsys.readouterr() == ("result of 0\n", "remark of 0\n")
