"""One address → one file on disk: whole and verified, or not there at all.

The bytes gather in `.NAME.part` beside the file, and `.NAME.part.tag` holds what the server called that version (its
ETag), so that a start after a kill goes on where the last one was, and starts anew where the file has changed.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from lorgnette.hub import proof, trouble
from lorgnette.hub.line import HttpClient
from lorgnette.hub.trouble import SourceError, TransientError


@dataclass(frozen=True, slots=True)
class DownloadTask:
    """A file to have at `path`. size and sha256 where the hub says them; headers carry a token."""

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


def is_complete(task: DownloadTask) -> bool:
    """Is the file there already, and is it the one that is wanted?"""
    if not task.path.is_file():
        return False
    try:
        _verify_file(task.path, task)
    except SourceError:
        return False
    return True


def download_file(client: HttpClient, task: DownloadTask, on_bytes: Callable[[int], None]) -> None:
    """Raises SourceError where the address does not give it, another LorgnetteError where the disk does not take it."""
    wrong = 0

    def attempt() -> None:
        nonlocal wrong
        _download_rest(client, task, on_bytes)
        try:
            _verify_file(task.part_path, task)
        except SourceError as error:
            _discard_part(task)
            wrong += 1
            if wrong > 1 or task.sha256 is None:
                raise
            raise TransientError(error.message, where=error.where, hint=error.hint) from error

    try:
        task.path.parent.mkdir(parents=True, exist_ok=True)
        client.with_retries(task.url, attempt, lambda: _get_size(task.part_path))
        os.replace(task.part_path, task.path)
        task.tag_path.unlink(missing_ok=True)
    except OSError as error:
        raise trouble.explain_disk_error(error, task.path) from error


def _download_rest(line: HttpClient, wanted: DownloadTask, count: Callable[[int], None]) -> None:
    """Bring the part file to its full length."""
    have, tag = _read_resume_state(wanted)
    if have and have == wanted.size:
        return
    headers = dict(wanted.headers)
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag:
            headers["If-Range"] = tag
    try:
        with line.stream(wanted.url, headers) as response:
            start = _check_start(response, have, wanted)
            total = _compute_total(response, start)
            _check_total(total, wanted)
            wanted.tag_path.write_text(_read_version_tag(response), encoding="utf-8")
            with wanted.part_path.open("ab" if start else "wb") as file:
                for chunk in line.iter_chunks(response):
                    file.write(chunk)
                    count(len(chunk))
    except SourceError as error:
        if have and "(416)" in error.message:
            _discard_part(wanted)
            raise TransientError(error.message, where=error.where, hint=trouble.RESUME_HINT, retry_after=0) from error
        raise
    if total is not None and _get_size(wanted.part_path) != total:
        raise TransientError(
            f"the connection was cut at {_get_size(wanted.part_path):,} of {total:,} bytes",
            where=trouble.redact_url(wanted.url),
            hint=trouble.RESUME_HINT,
        )


def _read_resume_state(wanted: DownloadTask) -> tuple[int, str]:
    """Bytes that are there, and the name of their version. Without that name only a known hash allows to go on."""
    have = _get_size(wanted.part_path)
    tag = wanted.tag_path.read_text(encoding="utf-8") if wanted.tag_path.is_file() else ""
    too_long = wanted.size is not None and have > wanted.size
    return (0, "") if too_long or not (tag or wanted.sha256) else (have, tag)


def _check_start(response: httpx2.Response, have: int, wanted: DownloadTask) -> int:
    if response.status_code != 206:
        return 0
    if response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        return have
    _discard_part(wanted)
    raise TransientError(
        "the server sent another part than asked for", where=trouble.redact_url(wanted.url), hint=trouble.RESUME_HINT
    )


def _compute_total(response: httpx2.Response, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() and _is_uncompressed(response) else None


def _check_total(total: int | None, wanted: DownloadTask) -> None:
    if total is not None and wanted.size is not None and total != wanted.size:
        _discard_part(wanted)
        raise SourceError(
            f"the server has {total:,} bytes where the hub lists {wanted.size:,}",
            where=trouble.redact_url(wanted.url),
            hint="try again later, or another source",
        )


def _read_version_tag(response: httpx2.Response) -> str:
    """What If-Range may hold: a strong ETag or a date; "" where the server names its version by neither."""
    etag = str(response.headers.get("ETag", ""))
    if not _is_uncompressed(response):
        return ""
    return etag if etag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _is_uncompressed(response: httpx2.Response) -> bool:
    return bool(response.headers.get("Content-Encoding", "identity") == "identity")


def _verify_file(path: Path, wanted: DownloadTask) -> None:
    place, size = trouble.redact_url(wanted.url), path.stat().st_size
    if wanted.size is not None and size != wanted.size:
        raise SourceError(
            f"{size:,} bytes came where {wanted.size:,} are listed", where=place, hint=trouble.RESUME_HINT
        )
    proof.check_file(path, wanted.path.name, where=place)
    if wanted.sha256:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted.sha256.lower():
            raise SourceError(
                f"the file's hash is {found[:12]}…, the hub lists {wanted.sha256[:12]}…",
                where=place,
                hint="try again later, or another source",
            )


def _get_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _discard_part(wanted: DownloadTask) -> None:
    wanted.part_path.unlink(missing_ok=True)
    wanted.tag_path.unlink(missing_ok=True)
