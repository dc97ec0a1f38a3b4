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
from lorgnette.hub.fetch import DownloadTask, download_file, is_complete
from lorgnette.hub.line import HttpClient
from lorgnette.hub.trouble import SourceError

__all__ = ["DownloadResult", "DownloadTask", "FailedDownload", "OnProgress", "check_disk_space", "download_files"]

OnProgress = Callable[[int, int], None]
"""Progress: (how many more files are there, how many more bytes came)."""
_MARGIN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class FailedDownload:
    """A file that could not be had."""

    url: str
    path: Path
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """files and bytes: fetched now. kept: files that were there already."""

    num_files: int
    num_bytes: int
    num_existing: int
    failures: tuple[FailedDownload, ...]


def ignore_progress(files: int, bytes: int) -> None:
    """Nobody looks at the progress."""


def download_files(
    tasks: Sequence[DownloadTask],
    *,
    client: HttpClient | None = None,
    num_workers: int = 8,
    on_progress: OnProgress = ignore_progress,
) -> DownloadResult:
    """Have all of `wanted`, or say of each why not. After a kill, call it again: it goes on where it was."""
    if client is None:
        with HttpClient(num_workers=num_workers) as own:
            return download_files(tasks, client=own, on_progress=on_progress)
    unique = _deduplicate(tasks)
    check_disk_space(unique)
    tally, left = _Counter(on_progress), _Queue(unique)
    with ThreadPoolExecutor(client.num_workers) as pool:
        futures = [pool.submit(_run_worker, client, left, tally) for _ in range(min(client.num_workers, len(unique)))]
        try:
            _wait_for_all(futures)
        except BaseException:
            client.stopped.set()
            raise
    return DownloadResult(
        tally.files, tally.bytes, tally.kept, tuple(tally.failed[path] for path in sorted(tally.failed))
    )


def check_disk_space(tasks: Sequence[DownloadTask]) -> None:
    """Raise LorgnetteError where the disk has no room for what is still to come, as far as sizes are known."""
    needed: dict[Path, int] = {}
    for each in tasks:
        if each.size is not None and not each.path.is_file():
            folder = _find_existing_parent(each.path.parent)
            there = each.part_path.stat().st_size if each.part_path.is_file() else 0
            needed[folder] = needed.get(folder, 0) + max(0, each.size - there)
    disks: dict[int, tuple[Path, int]] = {}
    for folder, count in needed.items():
        first, sum_ = disks.get(os.stat(folder).st_dev, (folder, 0))
        disks[os.stat(folder).st_dev] = first, sum_ + count
    for folder, count in disks.values():
        check_free_space(folder, count)


def check_free_space(folder: Path, needed: int) -> None:
    """Raise LorgnetteError where `folder`'s disk has not `needed` bytes and a little more free."""
    free = shutil.disk_usage(_find_existing_parent(folder)).free
    if needed and free < needed + min(_MARGIN_BYTES, needed // 10):
        raise LorgnetteError(
            f"{_format_size(needed)} are to come and {_format_size(free)} are free",
            where=str(folder),
            hint="free some space, or choose a folder on another disk",
        )


class _Counter:
    """What the threads have done, counted under a lock."""

    def __init__(self, seen: OnProgress) -> None:
        self.files, self.bytes, self.kept = 0, 0, 0
        self.failed: dict[Path, FailedDownload] = {}
        self._seen, self._lock = seen, threading.Lock()

    def add_bytes(self, count: int) -> None:
        with self._lock:
            self.bytes += count
            self._seen(0, count)

    def add_file(self, *, is_existing: bool) -> None:
        with self._lock:
            self.files += not is_existing
            self.kept += is_existing
            self._seen(1, 0)

    def add_failure(self, wanted: DownloadTask, error: SourceError) -> None:
        with self._lock:
            self.failed[wanted.path] = FailedDownload(wanted.url, wanted.path, error.message, error.hint or "")


class _Queue:
    """What nobody has taken yet, handed to one thread at a time."""

    def __init__(self, wanted: Sequence[DownloadTask]) -> None:
        self._wanted, self._lock = iter(wanted), threading.Lock()

    def pop(self) -> DownloadTask | None:
        with self._lock:
            return next(self._wanted, None)


def _run_worker(line: HttpClient, left: _Queue, tally: _Counter) -> None:
    """One thread's share."""
    while (wanted := left.pop()) is not None:
        line.check_stopped()
        if is_complete(wanted):
            tally.add_file(is_existing=True)
            continue
        try:
            download_file(line, wanted, tally.add_bytes)
        except SourceError as error:
            tally.add_failure(wanted, error)
        else:
            tally.add_file(is_existing=False)


def _wait_for_all(futures: Sequence[Future[None]]) -> None:
    """Wait in short sleeps, so that Ctrl-C is heard, and raise what ended a thread."""
    left = set(futures)
    while left:
        finished, left = wait(left, timeout=0.5, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()


def _deduplicate(wanted: Sequence[DownloadTask]) -> list[DownloadTask]:
    by_path: dict[Path, DownloadTask] = {}
    for each in wanted:
        if by_path.setdefault(each.path, each).url != each.url:
            raise ValueError(f"two addresses for {each.path}")
    return list(by_path.values())


def _find_existing_parent(folder: Path) -> Path:
    """The nearest folder above that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())


def _format_size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
