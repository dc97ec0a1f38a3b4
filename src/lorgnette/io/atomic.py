"""Atomic writes: write to a temporary file or folder beside the target, then rename it.

The temporary name is `.NAME.PID.part`; a folder that is being replaced is `.NAME.PID.old` for a moment. A killed
process leaves them, and `remove_leftovers` deletes them. No symbolic link at the end of a path is followed: someone
else may have planted it there.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorgnette.errors import LorgnetteError

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,9})\.(?P<kind>part|old)", re.DOTALL)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # not on Windows


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a new, empty file beside `path`; it replaces `path` if the block ends without an error.

    Raises LorgnetteError if it cannot be written; `path` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _explain_os_errors(path):
        if path.exists() and not path.is_file():
            message, hint = "neither a new nor a regular file", "name a file"  # a device would be replaced by a file
            raise LorgnetteError(message, where=str(path), hint=hint)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666))
        try:
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As `atomic_write`, for a folder. An existing folder is removed only when the new one is complete.

    Files get the permissions of the umask; safetensors makes them readable by their owner alone (mode 0600).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    previous = path.with_name(f".{path.name}.{os.getpid()}.old")
    with _explain_os_errors(path):
        _remove(temporary)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(file.stat().st_mode | (temporary.stat().st_mode & 0o666))  # mkdir applied the umask
                    _fsync(file)
            if path.exists():
                _remove(previous)
                os.replace(path, previous)
            os.replace(temporary, path)
        except BaseException:
            if previous.exists() and not path.exists():
                os.replace(previous, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder, if there is one: renamed first, so that a killed process leaves no part of it under its name."""
    if path.is_dir():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        with _explain_os_errors(path):
            _remove(temporary)
            os.replace(path, temporary)
            shutil.rmtree(temporary)


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Delete what killed processes left of atomic writes to those targets in `folder` whose whole name matches.

    A folder that was moved aside for its replacement is put back if the replacement did not come. What a running
    process writes stays; a leftover with this process's own number is an earlier process's.
    """
    for path in sorted(folder.glob(".*")):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or not names.fullmatch(match["name"]) or _is_other_process(int(match["pid"])):
            continue
        with _explain_os_errors(path):
            if match["kind"] == "old" and not (folder / match["name"]).exists():
                os.replace(path, folder / match["name"])
            else:
                _remove(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        # File names that are not UTF-8 contain lone surrogates: write them escaped, as JSON does.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def open_no_follow(path: str, flags: int) -> int:
    """An opener for `open`: fails at a symbolic link (ELOOP) instead of following it."""
    return os.open(path, flags | _NO_FOLLOW, 0o666)


def _fsync(path: Path) -> None:
    with open(path, "rb+", opener=open_no_follow) as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    """Remove a file, a folder or a symbolic link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_other_process(pid: int) -> bool:
    """Whether another process with this number runs now."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


@contextmanager
def _explain_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space or choose another folder; the previous file or folder is unchanged"
        raise LorgnetteError(f"cannot write: {error.strerror or error}", where=str(path), hint=hint) from error
