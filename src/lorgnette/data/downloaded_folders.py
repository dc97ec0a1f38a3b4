"""Data sets that were downloaded from a hub: which folders they are, who reads them, and their removal.

A process that reads such a data set holds a shared lock on `.source/in_use` until it ends; a folder is removed only
under the exclusive one, and under the lock of a download into it. What was not downloaded is never removed: a folder
with such files stays as it is.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lorgnette.io.atomic import open_no_follow

_SOURCE, _STATE_FILE, _IN_USE = ".source", "state.json", "in_use"
_held: dict[Path, int] = {}
"""Folders that this process reads → the open lock file."""


def is_download(folder: Path) -> bool:
    """Whether a data set was downloaded into the folder, at least in part."""
    return (folder / _SOURCE / _STATE_FILE).is_file()


def hold_download(path: Path) -> None:
    """Keep the downloaded data set that a path belongs to, if there is one, from being removed while this process runs.

    path: its data file, its folder, its folder of images, or an image.
    """
    for folder in (path, *path.parents[:2]):
        with suppress(OSError):  # a folder that cannot be read or written is not removed either
            if folder not in _held and is_download(folder):
                _held[folder] = _lock(folder / _SOURCE / _IN_USE, is_exclusive=False)
                os.utime(folder / _SOURCE / _IN_USE)


def find_last_use(folder: Path) -> float:
    """When the data set was last read or downloaded, in seconds since 1970."""
    files = (folder / _SOURCE / name for name in (_IN_USE, _STATE_FILE))
    return max(file.stat().st_mtime for file in files if file.is_file())


def find_other_file(folder: Path) -> Path | None:
    """A file or folder in it that was not downloaded; None if there is none. Symbolic links were not."""
    from lorgnette.data.download_journal import DATA_FILE, IMAGE_FOLDER, list_image_names

    own_names = {DATA_FILE, IMAGE_FOLDER, _SOURCE, "download.json", "failed.json"}
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or (path.name not in own_names and not _is_leftover(path.name)):
            return path
    known = list_image_names(folder / _SOURCE)
    images = folder / IMAGE_FOLDER
    for path in sorted(images.iterdir()) if images.is_dir() else ():
        if path.is_symlink() or path.is_dir() or not (path.name in known or _is_leftover(path.name)):
            return path
    return None


@contextmanager
def lock_download(folder: Path) -> Iterator[bool]:
    """Keep other processes from reading the data set and from downloading into it; False if one does, or if there are
    no locks."""
    import filelock  # not for every command that reads data

    with ExitStack() as stack:
        try:
            stack.enter_context(filelock.FileLock(folder / _SOURCE / "lock", timeout=0))
            stack.callback(os.close, _lock(folder / _SOURCE / _IN_USE, is_exclusive=True))
            is_locked = True
        except (filelock.Timeout, OSError):
            is_locked = False
        yield is_locked


def remove_download(folder: Path) -> None:
    """Delete the data set. Its state comes last, so that the rest of an interrupted removal is still known as one."""
    for path in folder.iterdir():
        if path.name != _SOURCE:
            _remove(path)
    for path in (folder / _SOURCE).iterdir():
        if path.name != _STATE_FILE:
            _remove(path)
    shutil.rmtree(folder)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _is_leftover(name: str) -> bool:
    """Of a killed process: the beginning of a file."""
    return name.startswith(".") and name.endswith((".part", ".part.tag"))


def _lock(path: Path, *, is_exclusive: bool) -> int:
    """The open lock file. Waits for a shared lock. Raises OSError if there is no exclusive one, and on Windows."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError("no locks on this system") from error
    descriptor = open_no_follow(str(path), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if is_exclusive else fcntl.LOCK_SH)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
