"""URLs → files on disk, several at once, each complete and verified or not there at all.

A file's bytes gather in `.NAME.part` beside it, and `.NAME.part.tag` holds the version that the server named (its
ETag): a restart after a kill resumes there, or begins again if the file has changed. A file that fails does not stop
the others; a full disk does. Knows nothing about hubs.
"""

import hashlib
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from lorgnette.errors import LorgnetteError, SourceError
from lorgnette.hub.file_signature import check_file
from lorgnette.hub.http import RESUME_HINT, HttpClient, TransientError, explain_disk_error, redact_url
from lorgnette.io.atomic import open_no_follow

OnProgress = Callable[[int, int], None]
"""Called with (number of new files, number of new bytes)."""
_MARGIN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class DownloadTask:
    """A URL and the path of its file. size and sha256: as the hub lists them, if it does. headers carry a token."""

    url: str
    path: Path
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def part_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def tag_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part.tag")


@dataclass(slots=True)
class DownloadResult:
    """What all threads have done. num_files, num_bytes: fetched now. num_existing: files that were complete before."""

    on_progress: OnProgress
    num_files: int = 0
    num_bytes: int = 0
    num_existing: int = 0
    failures: dict[Path, SourceError] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, num_files: int = 0, num_bytes: int = 0, num_existing: int = 0) -> None:
        with self._lock:
            self.num_files += num_files
            self.num_bytes += num_bytes
            self.num_existing += num_existing
            self.on_progress(num_files + num_existing, num_bytes)


def ignore_progress(files: int, bytes: int) -> None:
    """Does nothing."""


def download_files(
    tasks: Sequence[DownloadTask], *, client: HttpClient, on_progress: OnProgress = ignore_progress
) -> DownloadResult:
    """Fetch all files that are not complete yet. After a kill, call it again: it resumes."""
    by_path: dict[Path, DownloadTask] = {}
    for task in tasks:
        if by_path.setdefault(task.path, task).url != task.url:
            raise ValueError(f"two URLs for {task.path}")
    check_disk_space(list(by_path.values()))
    result, queue = DownloadResult(on_progress), deque(by_path.values())
    with ThreadPoolExecutor(client.num_workers) as pool:
        num_workers = min(client.num_workers, len(by_path))
        running = {pool.submit(_run_worker, client, queue, result) for _ in range(num_workers)}
        try:
            while running:  # in short intervals, so that Ctrl-C works
                finished, running = wait(running, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
        except BaseException:
            client.stopped.set()
            raise
    return result


def download_all(tasks: Sequence[DownloadTask], client: HttpClient, on_progress: OnProgress) -> None:
    """Fetch all files. Raises SourceError for the first that fails."""
    if failures := download_files(tasks, client=client, on_progress=on_progress).failures:
        raise failures[min(failures)]


def check_disk_space(tasks: Sequence[DownloadTask]) -> None:
    """Raise LorgnetteError if a disk has too little space for the remaining bytes, as far as sizes are known."""
    disks: dict[int, tuple[Path, int]] = {}
    for task in tasks:
        if task.size is not None and not task.path.is_file():
            folder = next(parent for parent in task.path.absolute().parents if parent.is_dir())
            device = os.stat(folder).st_dev
            first, needed = disks.get(device, (folder, 0))
            disks[device] = first, needed + max(0, task.size - _get_size(task.part_path))
    for folder, needed in disks.values():
        free = shutil.disk_usage(folder).free
        if needed and free < needed + min(_MARGIN_BYTES, needed // 10):
            message = f"not enough disk space: {_format_size(needed)} needed, {_format_size(free)} free"
            hint = "free some space, or choose a folder on another disk"
            raise LorgnetteError(message, where=str(folder), hint=hint)


def _run_worker(client: HttpClient, queue: "deque[DownloadTask]", result: DownloadResult) -> None:
    while queue:
        try:
            task = queue.popleft()
        except IndexError:  # another thread took the last one
            return
        client.check_stopped()
        if is_complete(task):
            result.add(num_existing=1)
            continue
        try:
            download_file(client, task, lambda num_bytes: result.add(num_bytes=num_bytes))
        except SourceError as error:
            result.failures[task.path] = error
        else:
            result.add(num_files=1)


def _format_size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def is_complete(task: DownloadTask) -> bool:
    """Whether the file exists and has the listed size and hash."""
    if not task.path.is_file():
        return False
    try:
        _verify_file(task.path, task)
    except SourceError:
        return False
    return True


def download_file(client: HttpClient, task: DownloadTask, on_bytes: Callable[[int], None]) -> None:
    """Fetch one file. Raises SourceError if its URL does not give it, another LorgnetteError if the disk fails."""
    num_wrong = 0

    def attempt() -> None:
        nonlocal num_wrong
        _download_rest(client, task, on_bytes)
        try:
            _verify_file(task.part_path, task)
        except SourceError as error:
            _discard_part(task)
            num_wrong += 1
            # A wrong hash may be a damaged transfer: try once more. Without a hash the content itself is wrong.
            if num_wrong > 1 or task.sha256 is None:
                raise
            raise TransientError(error.message, where=error.where, hint=error.hint) from error

    try:
        task.path.parent.mkdir(parents=True, exist_ok=True)
        client.with_retries(task.url, attempt, lambda: _get_size(task.part_path))
        os.replace(task.part_path, task.path)
        task.tag_path.unlink(missing_ok=True)
    except OSError as error:
        raise explain_disk_error(error, task.path) from error


def _download_rest(client: HttpClient, task: DownloadTask, on_bytes: Callable[[int], None]) -> None:
    """Append to the part file until it is complete."""
    # Without the version of the part only a known hash allows to resume.
    size = _get_size(task.part_path)
    tag = task.tag_path.read_text(encoding="utf-8") if task.tag_path.is_file() else ""
    if (task.size is not None and size > task.size) or not (tag or task.sha256):
        size = 0
    if size and size == task.size:
        return
    headers = {"Range": f"bytes={size}-", **({"If-Range": tag} if tag else {})} if size else {}
    where = redact_url(task.url)
    try:
        with client.stream(task.url, {**task.headers, **headers}) as response:
            is_partial, range_ = response.status_code == 206, response.headers.get("Content-Range", "")
            start = size if is_partial else 0
            if is_partial and not range_.startswith(f"bytes {size}-"):
                _discard_part(task)
                message = "the server sent another range than requested"
                raise TransientError(message, where=where, hint=RESUME_HINT)
            is_identity = response.headers.get("Content-Encoding", "identity") == "identity"
            length, etag = (response.headers.get(name, "") for name in ("Content-Length", "ETag"))
            total = start + int(length) if length.isdecimal() and is_identity else None
            if total is not None and task.size not in (None, total):
                _discard_part(task)
                message = f"the server has {total:,} bytes, the hub lists {task.size:,}"
                raise SourceError(message, where=where, hint="try again later, or another source")
            # A value for If-Range: a strong ETag or a date; "" if the server names its version by neither.
            version = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
            with open(task.tag_path, "w", encoding="utf-8", opener=open_no_follow) as tag_file:
                tag_file.write(version if is_identity else "")
            with open(task.part_path, "ab" if start else "wb", opener=open_no_follow) as file:
                for chunk in client.iter_chunks(response):
                    file.write(chunk)
                    on_bytes(len(chunk))
    except SourceError as error:
        if size and "HTTP 416" in error.message:
            _discard_part(task)
            raise TransientError(error.message, where=error.where, hint=RESUME_HINT, retry_after=0) from error
        raise
    if total is not None and _get_size(task.part_path) != total:
        message = f"connection lost at {_get_size(task.part_path):,} of {total:,} bytes"
        raise TransientError(message, where=where, hint=RESUME_HINT)


def _verify_file(path: Path, task: DownloadTask) -> None:
    where, size = redact_url(task.url), path.stat().st_size
    if task.size is not None and size != task.size:
        raise SourceError(f"{size:,} bytes arrived, {task.size:,} are listed", where=where, hint=RESUME_HINT)
    check_file(path, task.path.name, where=where)
    if task.sha256:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != task.sha256.lower():
            message = f"the file's hash is {digest[:12]}…, the hub lists {task.sha256[:12]}…"
            raise SourceError(message, where=where, hint="try again later, or another source")


def _get_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _discard_part(task: DownloadTask) -> None:
    task.part_path.unlink(missing_ok=True)
    task.tag_path.unlink(missing_ok=True)
