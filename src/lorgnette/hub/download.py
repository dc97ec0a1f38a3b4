"""Many addresses → files on disk, several at once: `fetch` for each, what is there already is kept.

Knows nothing about hubs. A file that cannot be had does not stop the others; a disk that fills does.
"""

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.hub.fetch import Wanted, fetch, stands
from lorgnette.hub.line import Line
from lorgnette.hub.trouble import SourceError

__all__ = ["Downloaded", "Failure", "Seen", "Wanted", "download", "room_for"]

Seen = Callable[[int, int], None]
"""Progress: (how many more files are there, how many more bytes came)."""
_MARGIN = 64 << 20


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be had."""

    url: str
    path: Path
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Downloaded:
    """files and bytes: fetched now. kept: files that were there already."""

    files: int
    bytes: int
    kept: int
    failed: tuple[Failure, ...]


def unseen(files: int, bytes: int) -> None:
    """Nobody looks at the progress."""


def download(
    wanted: Sequence[Wanted], *, line: Line | None = None, workers: int = 8, seen: Seen = unseen
) -> Downloaded:
    """Have all of `wanted`, or say of each why not. After a kill, call it again: it goes on where it was."""
    if line is None:
        with Line(workers=workers) as own:
            return download(wanted, line=own, seen=seen)
    unique = _once(wanted)
    room_for(unique)
    tally, left = _Tally(seen), _Left(unique)
    with ThreadPoolExecutor(line.workers) as pool:
        futures = [pool.submit(_some, line, left, tally) for _ in range(min(line.workers, len(unique)))]
        try:
            _all(futures)
        except BaseException:
            line.stopped.set()
            raise
    return Downloaded(tally.files, tally.bytes, tally.kept, tuple(tally.failed[path] for path in sorted(tally.failed)))


def room_for(wanted: Sequence[Wanted]) -> None:
    """Raise LorgnetteError where the disk has no room for what is still to come, as far as sizes are known."""
    needed: dict[Path, int] = {}
    for each in wanted:
        if each.size is not None and not each.path.is_file():
            folder = _standing(each.path.parent)
            there = each.part.stat().st_size if each.part.is_file() else 0
            needed[folder] = needed.get(folder, 0) + max(0, each.size - there)
    disks: dict[int, tuple[Path, int]] = {}
    for folder, count in needed.items():
        first, sum_ = disks.get(os.stat(folder).st_dev, (folder, 0))
        disks[os.stat(folder).st_dev] = first, sum_ + count
    for folder, count in disks.values():
        enough(folder, count)


def enough(folder: Path, needed: int) -> None:
    """Raise LorgnetteError where `folder`'s disk has not `needed` bytes and a little more free."""
    free = shutil.disk_usage(_standing(folder)).free
    if needed and free < needed + min(_MARGIN, needed // 10):
        raise LorgnetteError(
            f"{_gb(needed)} are to come and {_gb(free)} are free",
            where=str(folder),
            remedy="free some space, or choose a folder on another disk",
        )


class _Tally:
    """What the threads have done, counted under a lock."""

    def __init__(self, seen: Seen) -> None:
        self.files, self.bytes, self.kept = 0, 0, 0
        self.failed: dict[Path, Failure] = {}
        self._seen, self._lock = seen, threading.Lock()

    def came(self, count: int) -> None:
        with self._lock:
            self.bytes += count
            self._seen(0, count)

    def done(self, *, kept: bool) -> None:
        with self._lock:
            self.files += not kept
            self.kept += kept
            self._seen(1, 0)

    def fail(self, wanted: Wanted, error: SourceError) -> None:
        with self._lock:
            self.failed[wanted.path] = Failure(wanted.url, wanted.path, error.what, error.remedy or "")


class _Left:
    """What nobody has taken yet, handed to one thread at a time."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self._wanted, self._lock = iter(wanted), threading.Lock()

    def take(self) -> Wanted | None:
        with self._lock:
            return next(self._wanted, None)


def _some(line: Line, left: _Left, tally: _Tally) -> None:
    """One thread's share."""
    while (wanted := left.take()) is not None:
        line.check()
        if stands(wanted):
            tally.done(kept=True)
            continue
        try:
            fetch(line, wanted, tally.came)
        except SourceError as error:
            tally.fail(wanted, error)
        else:
            tally.done(kept=False)


def _all(futures: Sequence[Future[None]]) -> None:
    """Wait in short sleeps, so that Ctrl-C is heard, and raise what ended a thread."""
    left = set(futures)
    while left:
        finished, left = wait(left, timeout=0.5, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()


def _once(wanted: Sequence[Wanted]) -> list[Wanted]:
    by_path: dict[Path, Wanted] = {}
    for each in wanted:
        if by_path.setdefault(each.path, each).url != each.url:
            raise ValueError(f"two addresses for {each.path}")
    return list(by_path.values())


def _standing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
