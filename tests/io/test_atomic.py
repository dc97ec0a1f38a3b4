"""A write completes or changes nothing, whatever fails and when."""

import errno
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import (
    atomic_folder,
    atomic_write,
    open_no_follow,
    remove_folder,
    remove_leftovers,
    write_json,
    write_text,
)


class UnpluggedError(Exception):
    """An error that does not come from the disk."""


def fail_full_disk(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds a file `page` and a folder `run`."""
    (tmp_path / "page").write_text("old")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("old a")
    return tmp_path


BEFORE = {"page": "old", "run/a": "old a"}


def test_text_and_json_replace_existing_files(folder: Path) -> None:
    write_text(folder / "page", "neu é 新\n")
    write_json(folder / "deep" / "er" / "x.json", {"é": [1, None]})
    assert (folder / "page").read_bytes() == "neu é 新\n".encode()
    assert json.loads((folder / "deep/er/x.json").read_text(encoding="utf-8")) == {"é": [1, None]}
    assert "é" in (folder / "deep/er/x.json").read_text(encoding="utf-8")
    assert {path.name for path in folder.iterdir()} == {"page", "run", "deep"}


def test_a_folder_is_replaced_as_a_whole(folder: Path) -> None:
    with atomic_folder(folder / "run") as temporary:
        (temporary / "b").mkdir()
        (temporary / "b" / "c").write_text("new")
        assert read_files(folder / "run") == {"a": "old a"}
    assert read_files(folder) == {"page": "old", "run/b/c": "new"}


def test_files_get_the_permissions_of_the_folder(folder: Path) -> None:
    """safetensors makes files readable by their owner alone."""
    before = os.umask(0o027)
    try:
        with atomic_folder(folder / "run") as temporary:
            (temporary / "weights").write_text("new")
            (temporary / "weights").chmod(0o600)
            (temporary / "tool").write_text("new")
            (temporary / "tool").chmod(0o700)
    finally:
        os.umask(before)
    assert [(folder / "run" / name).stat().st_mode & 0o777 for name in ("weights", "tool")] == [0o640, 0o740]


@pytest.mark.parametrize("failure", [UnpluggedError, KeyboardInterrupt])
def test_a_block_that_fails_changes_nothing(folder: Path, failure: type[BaseException]) -> None:
    def write_half(temporary: Path) -> None:
        temporary.write_text("half")
        raise failure

    with pytest.raises(failure), atomic_write(folder / "page") as temporary:
        write_half(temporary)
    with pytest.raises(failure), atomic_folder(folder / "run") as temporary:
        write_half(temporary / "a")
    assert read_files(folder) == BEFORE
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("target", ["os.fsync", "os.replace", "pathlib.Path.write_text"])
def test_a_full_disk_is_an_error_and_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(target, fail_full_disk)
    with pytest.raises(LorgnetteError) as caught_file:
        write_text(folder / "page", "new")
    with pytest.raises(LorgnetteError) as caught_folder, atomic_folder(folder / "run") as temporary:
        (temporary / "a").write_text("new")
    monkeypatch.undo()
    for caught, name in ((caught_file, "page"), (caught_folder, "run")):
        assert caught.value.message == "cannot write: No space left on device"
        assert caught.value.where == str(folder / name)
        assert "unchanged" in str(caught.value.hint)
    assert read_files(folder) == BEFORE


def test_the_old_folder_is_restored_if_the_rename_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is renamed first: an error at that moment must not lose both."""
    replace = os.replace

    def fail_second_rename(source: Path, target: Path) -> None:
        if Path(source).suffix == ".part":
            fail_full_disk()
        replace(source, target)

    monkeypatch.setattr("os.replace", fail_second_rename)
    with pytest.raises(LorgnetteError, match="No space left"), atomic_folder(folder / "run") as temporary:
        (temporary / "a").write_text("new")
    assert read_files(folder) == BEFORE


def test_leftovers_of_a_killed_process_do_not_matter(folder: Path) -> None:
    """A container's processes have the same number every time."""
    for name in (f".run.{os.getpid()}.part", f".run.{os.getpid()}.old"):
        (folder / name).mkdir()
        (folder / name / "left").write_text("over")
    with atomic_folder(folder / "run") as temporary:
        (temporary / "a").write_text("new")
    assert read_files(folder) == {"page": "old", "run/a": "new"}


def test_a_path_that_cannot_be_written_is_an_error(folder: Path) -> None:
    with pytest.raises(LorgnetteError, match=r"cannot write: .*page/x"):
        write_text(folder / "page" / "x", "a file instead of a folder")
    with pytest.raises(LorgnetteError, match=r"cannot write: .*page/x"), atomic_folder(folder / "page" / "x"):
        pass


@pytest.mark.parametrize("target", ["secret", "nowhere"])
def test_a_planted_link_is_not_followed(folder: Path, target: str) -> None:
    """In a folder that others can write to, somebody may know the temporary name."""
    (folder / "secret").write_text("mine")
    for name in ("page", "run"):
        for kind in ("part", "old"):
            (folder / f".{name}.{os.getpid()}.{kind}").symlink_to(folder / target)
    write_text(folder / "page", "new")
    with atomic_folder(folder / "run") as temporary:
        (temporary / "a").write_text("new")
    assert (folder / "secret").read_text() == "mine"
    assert not (folder / "nowhere").exists()
    assert (folder / "page").read_text() == (folder / "run" / "a").read_text() == "new"
    assert not (folder / "run").is_symlink()


def test_a_link_planted_after_the_clean_up_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f".page.{os.getpid()}.part").symlink_to(folder / "run" / "a")
    monkeypatch.setattr("lorgnette.io.atomic._remove", lambda path: None)
    with pytest.raises(LorgnetteError, match="cannot write: File exists"):
        write_text(folder / "page", "new")
    assert read_files(folder / "run") == {"a": "old a"}


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LorgnetteError, match="neither a new nor a regular file"):
        write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_an_opener_does_not_follow_a_link(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "page")
    with pytest.raises(OSError, match="symbolic links"), open(folder / "link", "a", opener=open_no_follow):
        pass
    with open(folder / "new", "a", opener=open_no_follow) as file:
        file.write("x")
    assert (folder / "page").read_text() == "old"


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_leftovers_of_dead_processes_are_removed(folder: Path, dead: int) -> None:
    for pid in (dead, os.getpid(), os.getppid()):
        (folder / f".page.{pid}.part").write_text("half")
        (folder / f".run.{pid}.part").mkdir()
        (folder / f".run.{pid}.part" / "a").write_text("half")
    others = [".page.part", f".notes.{dead}.part", f"page.{dead}.part", ".page.x.part", f".page.{dead}.part2"]
    for name in others:
        (folder / name).write_text("mine")
    (folder / f".page.{10**8}.part").symlink_to(folder / "run")
    remove_leftovers(folder, re.compile("page|run"))
    remove_leftovers(folder / "none", re.compile("page|run"))
    left = {path.name for path in folder.iterdir()}
    assert left == {"page", "run", *others, f".page.{os.getppid()}.part", f".run.{os.getppid()}.part"}
    assert read_files(folder / "run") == {"a": "old a"}


def test_a_folder_whose_replacement_did_not_come_is_put_back(folder: Path, dead: int) -> None:
    """The process was killed between the two renames, or after both."""
    os.replace(folder / "run", folder / f".run.{dead}.old")
    (folder / f".run.{dead}.part").mkdir()
    remove_leftovers(folder, re.compile("page|run"))
    assert read_files(folder) == BEFORE
    (folder / f".run.{dead}.old").mkdir()
    remove_leftovers(folder, re.compile("page|run"))
    assert read_files(folder) == BEFORE
    assert len(list(folder.iterdir())) == 2


def test_a_folder_is_removed_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise UnpluggedError

    monkeypatch.setattr("shutil.rmtree", fail)
    with pytest.raises(UnpluggedError):
        remove_folder(folder / "run")
    assert not (folder / "run").exists()
    monkeypatch.undo()
    remove_leftovers(folder, re.compile("run"))
    remove_folder(folder / "run")  # nothing there
    assert [path.name for path in folder.iterdir()] == ["page"]
