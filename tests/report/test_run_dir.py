"""The run folder: its files, its lock, and no run overwrites another."""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.run_dir import RunDir, find_free_path, is_free

Warn = Callable[[str], None]


@pytest.fixture
def warn() -> Warn:
    """Nothing is to be warned of."""
    return pytest.fail


def test_the_files_of_a_run(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "runs" / "coco")
    paths = [
        run_dir.config, run_dir.manifest, run_dir.adapter, run_dir.checkpoints, run_dir.log, run_dir.predictions,
        run_dir.report,
    ]  # fmt: skip
    names = "config.yaml manifest.json adapter checkpoints log.jsonl predictions.jsonl report.html"
    assert [path.name for path in paths] == names.split()
    assert {path.parent for path in paths} == {tmp_path / "runs" / "coco"}
    assert run_dir.path.is_dir()


def test_the_run_of_an_adapter_is_found(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "coco")
    adapters = (run_dir.adapter, run_dir.best, run_dir.checkpoints / "step-000002")
    assert [RunDir.find_of_adapter(adapter) for adapter in adapters] == [None] * 3
    run_dir.config.write_text("")
    assert [RunDir.find_of_adapter(adapter) for adapter in adapters] == [run_dir] * 3
    assert RunDir.find_of_adapter(tmp_path / "elsewhere" / "adapter") is None


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "coco")
    RunDir.create(tmp_path / "coco")  # still empty
    run_dir.config.write_text("")
    with pytest.raises(UsageError, match=r"exists.*lorgnette train --resume"):
        RunDir.create(tmp_path / "coco")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"exists and is not empty .* choose another name$"):
        RunDir.create(tmp_path / "mine")


NO_PROCESS = 999_999_999


@pytest.mark.parametrize(
    "last", ["", ".lock", f".manifest.json.{NO_PROCESS}.part", "manifest.json", f".config.yaml.{NO_PROCESS}.part"]
)
def test_a_run_that_was_killed_before_it_could_be_resumed_is_free(tmp_path: Path, last: str, warn: Warn) -> None:
    names = ["", ".lock", f".manifest.json.{NO_PROCESS}.part", "manifest.json", f".config.yaml.{NO_PROCESS}.part"]
    names.append("config.yaml")
    path = tmp_path / "coco"
    path.mkdir()
    for name in names[1 : names.index(last) + 1]:
        (path / name).write_text("")
    assert is_free(path)
    assert find_free_path(tmp_path, "coco") == path
    with pytest.raises(
        UsageError,
        match="stopped before its first step" if "manifest.json" in names[: names.index(last) + 1] else "not a run",
    ):
        RunDir.open_existing(path)
    with RunDir.create(path).lock(warn):
        assert {child.name for child in path.iterdir()} <= {".lock", "manifest.json"}
    (path / "config.yaml").write_text("")
    assert not is_free(path)
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco-2"


def test_the_second_process_is_told_which_one_holds_the_lock(tmp_path: Path, warn: Warn) -> None:
    run_dir = RunDir.create(tmp_path / "coco")
    with run_dir.lock(warn):
        message = f"process {os.getpid()} is training in this run folder · {run_dir.path} · wait for it"
        with pytest.raises(UsageError, match=message), RunDir(run_dir.path).lock(warn):
            pass
    with run_dir.lock(warn):
        pass
    assert list(run_dir.path.iterdir()) == []


def start_holder(run_dir: RunDir, warn: Warn) -> tuple[int, int]:
    """(a process that holds the lock, its child, which was forked later)"""
    reader, writer = os.pipe()
    holder = os.fork()
    if not holder:
        with run_dir.lock(warn):
            if not os.fork():
                os.write(writer, str(os.getpid()).encode())  # now the child has given the lock back
            signal.pause()
    os.close(writer)
    child = int(os.read(reader, 16))
    os.close(reader)
    return holder, child


def test_a_lock_ends_with_its_process_although_a_forked_child_lives(tmp_path: Path, warn: Warn) -> None:
    run_dir = RunDir.create(tmp_path / "coco")
    holder, child = start_holder(run_dir, warn)
    try:
        with pytest.raises(UsageError, match=f"process {holder} "), run_dir.lock(warn):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.kill(child, 0)
        assert run_dir.lock_file.exists()
        with run_dir.lock(warn):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, warn: Warn) -> None:
    run_dir = RunDir.create(tmp_path)
    dead = 10**8
    for name in (f".best.{dead}.part", f"checkpoints/.step-000100.{dead}.part", f"checkpoints/.step-000050.{dead}.old"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "half").write_text("")
    (tmp_path / f".notes.{dead}.part").write_text("")
    with run_dir.lock(warn):
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {
        f".notes.{dead}.part",
        ".lock",
        "checkpoints",
        "checkpoints/step-000050",
        "checkpoints/step-000050/half",
    }


def test_a_folder_that_is_renamed_or_deleted_is_noticed(tmp_path: Path, warn: Warn) -> None:
    RunDir(tmp_path / "unlocked").check_in_place()
    for number, move in enumerate((lambda path: path.rename(tmp_path / "other"), shutil.rmtree)):
        run_dir = RunDir.create(tmp_path / str(number))
        with run_dir.lock(warn) as locked:
            locked.check_in_place()
            move(run_dir.path)
            with pytest.raises(LorgnetteError, match="deleted or renamed while it was in use"):
                locked.check_in_place()
            run_dir.path.mkdir()
            run_dir.lock_file.touch()  # another run has its place
            assert not locked.is_in_place
        assert run_dir.lock_file.exists()


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    warnings: list[str] = []
    with RunDir(tmp_path).lock(warnings.append) as locked:
        locked.check_in_place()
    assert "file system without locks: let only one process train in it" in warnings[0]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, warn: Warn) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(LorgnetteError, match="run folder cannot be written: Too many levels"),
        RunDir(tmp_path).lock(warn),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_of_the_same_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "coco").write_text("")
    with pytest.raises(LorgnetteError, match="cannot be created"):
        RunDir.create(tmp_path / "coco")


def test_only_a_run_folder_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run"):
        RunDir.open_existing(tmp_path / "absent")
    with pytest.raises(UsageError, match="an empty folder, not a run"):
        RunDir.open_existing(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    assert RunDir.open_existing(tmp_path) == RunDir(tmp_path)


def test_the_number_comes_before_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "compare.html").touch()
    assert find_free_path(tmp_path, "compare", ".html") == tmp_path / "compare-2.html"


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco"
    (tmp_path / "coco").mkdir()
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco"
    (tmp_path / "coco" / "x").write_text("")
    (tmp_path / "coco-2").write_text("")
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco-3"


def test_a_forked_rank_keeps_the_lock_that_is_shared(tmp_path: Path, warn: Warn) -> None:
    """Until it ends: the process that forked it may be killed before."""
    (reader, writer), (rank_reader, rank_writer) = os.pipe(), os.pipe()
    with RunDir.create(tmp_path / "run").lock(warn) as locked:
        with locked.share_lock() as shared:
            child = os.fork()
            if not child:
                os.write(rank_writer, b"%d%d" % (shared.is_in_place, locked.is_in_place))
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
        assert os.read(rank_reader, 2) == b"10"
        assert locked.is_in_place
        locked.lock_file.rename(tmp_path / ".lock")  # as if this process were killed, and removed no file
    with pytest.raises(UsageError, match="is training in this run folder"), RunDir(tmp_path).lock(warn):
        pass
    os.close(writer)
    os.waitpid(child, 0)
    with RunDir(tmp_path).lock(warn):
        pass
    for descriptor in (reader, rank_reader, rank_writer):
        os.close(descriptor)


def test_a_folder_without_a_lock_is_shared_without_one(tmp_path: Path) -> None:
    with RunDir(tmp_path).share_lock() as shared:
        assert shared.lock_descriptor is None
