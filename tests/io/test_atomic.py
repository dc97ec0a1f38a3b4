"""Whole or as before, whatever fails and whenever."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_folder, atomic_write, write_json, write_text


class UnpluggedError(Exception):
    """Something that is no fault of the disk."""


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file `page` and a folder `run` that were there before."""
    (tmp_path / "page").write_text("old")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("old a")
    return tmp_path


BEFORE = {"page": "old", "run/a": "old a"}


def test_text_and_json_replace_what_was_there(place: Path) -> None:
    write_text(place / "page", "neu é 新\n")
    write_json(place / "deep" / "er" / "x.json", {"é": [1, None]})
    assert (place / "page").read_bytes() == "neu é 新\n".encode()
    assert json.loads((place / "deep/er/x.json").read_text(encoding="utf-8")) == {"é": [1, None]}
    assert "é" in (place / "deep/er/x.json").read_text(encoding="utf-8")
    assert {path.name for path in place.iterdir()} == {"page", "run", "deep"}


def test_a_folder_is_replaced_as_a_whole(place: Path) -> None:
    with atomic_folder(place / "run") as beside:
        (beside / "b").mkdir()
        (beside / "b" / "c").write_text("new")
        assert contents(place / "run") == {"a": "old a"}
    assert contents(place) == {"page": "old", "run/b/c": "new"}


def test_a_folders_files_are_as_open_as_the_folder(place: Path) -> None:
    """safetensors writes for the owner alone; whoever may enter the folder is meant to read it."""
    before = os.umask(0o027)
    try:
        with atomic_folder(place / "run") as beside:
            (beside / "weights").write_text("new")
            (beside / "weights").chmod(0o600)
            (beside / "tool").write_text("new")
            (beside / "tool").chmod(0o700)
    finally:
        os.umask(before)
    assert [(place / "run" / name).stat().st_mode & 0o777 for name in ("weights", "tool")] == [0o640, 0o740]


@pytest.mark.parametrize("failure", [UnpluggedError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_everything_as_it_was(place: Path, failure: type[BaseException]) -> None:
    def begun(beside: Path) -> None:
        beside.write_text("half")
        raise failure

    with pytest.raises(failure), atomic_write(place / "page") as beside:
        begun(beside)
    with pytest.raises(failure), atomic_folder(place / "run") as beside:
        begun(beside / "a")
    assert contents(place) == BEFORE
    assert len(list(place.iterdir())) == 2


@pytest.mark.parametrize("target", ["os.fsync", "os.replace", "pathlib.Path.write_text"])
def test_a_full_disk_is_said_and_leaves_the_old(place: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(target, full)
    with pytest.raises(LorgnetteError) as file:
        write_text(place / "page", "new")
    with pytest.raises(LorgnetteError) as folder, atomic_folder(place / "run") as beside:
        (beside / "a").write_text("new")
    monkeypatch.undo()
    for caught, name in ((file, "page"), (folder, "run")):
        assert caught.value.message == "cannot write: No space left on device"
        assert caught.value.where == str(place / name)
        assert "untouched" in str(caught.value.hint)
    assert contents(place) == BEFORE


def test_the_old_folder_comes_back_when_the_new_cannot_take_its_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one is moved aside first: an error at that moment must not lose both."""
    replace = os.replace

    def second_fails(source: Path, target: Path) -> None:
        if Path(source).suffix == ".part":
            full()
        replace(source, target)

    monkeypatch.setattr("os.replace", second_fails)
    with pytest.raises(LorgnetteError, match="No space left"), atomic_folder(place / "run") as beside:
        (beside / "a").write_text("new")
    assert contents(place) == BEFORE


def test_what_a_killed_process_left_is_no_hindrance(place: Path) -> None:
    """A container's processes have the same number every time."""
    for name in (f".run.{os.getpid()}.part", f".run.{os.getpid()}.old"):
        (place / name).mkdir()
        (place / name / "left").write_text("over")
    with atomic_folder(place / "run") as beside:
        (beside / "a").write_text("new")
    assert contents(place) == {"page": "old", "run/a": "new"}


def test_a_place_that_cannot_be_written_is_named(place: Path) -> None:
    with pytest.raises(LorgnetteError, match=r"cannot write: .*page/x"):
        write_text(place / "page" / "x", "a file stands where a folder should")
    with pytest.raises(LorgnetteError, match=r"cannot write: .*page/x"), atomic_folder(place / "page" / "x"):
        pass
    with pytest.raises(LorgnetteError, match="cannot write"), atomic_write(place / "never"):
        pass  # the block wrote nothing
