"""The folder of image features on disk: its sets, and the removal of those that no process has open. Needs no torch.

disk_cache.py says what a set is.
"""

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lorgnette.io.atomic import open_no_follow
from lorgnette.types import ImageGrid

ENTRY = struct.Struct("<32sQIIII")
"""Of a set's index: key, first row, rows, crc32, entries that follow, crc32."""
_SET_FILES = ("index", "rows", "lock", "in_use")
"""In the order of their removal: rows without an index are ignored, and a folder without in_use is no set."""


def read_key(grid: ImageGrid) -> bytes | None:
    """The key of an image: `build_key` of its file. None if the file cannot be read."""
    try:
        content = grid.image.path.read_bytes()
    except OSError:  # whoever decodes the image says why
        return None
    return build_key(grid, hashlib.sha256(content).digest())


def read_file_version(path: Path) -> tuple[int, ...] | None:
    """What differs once a file is written or replaced. None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def build_key(grid: ImageGrid, digest: bytes) -> bytes:
    """A hash of an image file's sha256 (32 bytes) and the size of its grid."""
    return hashlib.sha256(f"{grid.t} {grid.h} {grid.w} ".encode() + digest).digest()


def get_features_folder() -> Path:
    """The folder of all sets; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorgnette" / "features"


def list_sets(root: Path) -> list[Path]:
    """The sets, opened longest ago first. A symbolic link is none: what it points to may be anybody's."""
    files = [path for path in root.glob("*/in_use") if not path.is_symlink() and not path.parent.is_symlink()]
    return sorted((path.parent for path in files), key=find_last_use)


def find_last_use(folder: Path) -> float:
    """When a process last opened the set, in seconds since 1970."""
    return (folder / "in_use").stat().st_mtime


def measure_set(folder: Path) -> int:
    """The bytes of its own files."""
    return sum(path.lstat().st_size for path in _list_files(folder))


def count_images(folder: Path) -> int:
    """The entries of its index."""
    index = folder / "index"
    return index.stat().st_size // ENTRY.size if index.is_file() else 0


def is_in_use(folder: Path) -> bool:
    """Whether a process has the set open now."""
    try:
        lock_file(folder / "in_use", fcntl.LOCK_EX | fcntl.LOCK_NB).close()
    except BlockingIOError:
        return True
    return False


def remove_set(root: Path, folder: Path) -> int | None:
    """Delete the set; the bytes freed, or None if a process has it open. Other files in the folder stay."""
    with lock_file(root / "lock", fcntl.LOCK_EX):  # held by a process that opens a set
        return _remove(folder)


def evict_oldest(root: Path, current: Path, max_bytes: int) -> None:
    """Delete the sets opened longest ago, except this one and those that a process has open. The caller holds the lock
    of `root`."""
    sizes = {folder: measure_set(folder) for folder in list_sets(root)}
    total = sum(sizes.values())
    for folder in sizes:
        if total <= max_bytes:
            return
        if folder != current:
            total -= _remove(folder) or 0


def lock_file(path: Path, kind: int) -> IO[bytes]:
    """The lock lasts as long as the file is open."""
    file = open(path, "ab", opener=open_no_follow)  # noqa: SIM115
    try:
        fcntl.flock(file, kind)
    except OSError:
        file.close()
        raise
    return file


def _remove(folder: Path) -> int | None:
    size = measure_set(folder)
    try:
        in_use = lock_file(folder / "in_use", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    with in_use:
        for path in _list_files(folder):
            path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
    return size


def _list_files(folder: Path) -> Iterator[Path]:
    return (path for name in _SET_FILES if os.path.lexists(path := folder / name))
