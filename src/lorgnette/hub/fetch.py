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
from lorgnette.hub.line import Line
from lorgnette.hub.trouble import PassingError, SourceError


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to have at `path`. size and sha256 where the hub says them; headers carry a token."""

    url: str
    path: Path
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def part(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def tag(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part.tag")


def stands(wanted: Wanted) -> bool:
    """Is the file there already, and is it the one that is wanted?"""
    if not wanted.path.is_file():
        return False
    try:
        _verify(wanted.path, wanted)
    except SourceError:
        return False
    return True


def fetch(line: Line, wanted: Wanted, count: Callable[[int], None]) -> None:
    """Raises SourceError where the address does not give it, another LorgnetteError where the disk does not take it."""
    wrong = 0

    def attempt() -> None:
        nonlocal wrong
        _pull(line, wanted, count)
        try:
            _verify(wanted.part, wanted)
        except SourceError as error:
            _discard(wanted)
            wrong += 1
            if wrong > 1 or wanted.sha256 is None:
                raise
            raise PassingError(error.what, where=error.where, remedy=error.remedy) from error

    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        line.persist(wanted.url, attempt, lambda: _size(wanted.part))
        os.replace(wanted.part, wanted.path)
        wanted.tag.unlink(missing_ok=True)
    except OSError as error:
        raise trouble.of_disk(error, wanted.path) from error


def _pull(line: Line, wanted: Wanted, count: Callable[[int], None]) -> None:
    """Bring the part file to its full length."""
    have, tag = _resumable(wanted)
    if have and have == wanted.size:
        return
    headers = dict(wanted.headers)
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag:
            headers["If-Range"] = tag
    try:
        with line.answer(wanted.url, headers) as response:
            start = _start(response, have, wanted)
            total = _total(response, start)
            _fits(total, wanted)
            wanted.tag.write_text(_tag(response), encoding="utf-8")
            with wanted.part.open("ab" if start else "wb") as file:
                for chunk in line.chunks(response):
                    file.write(chunk)
                    count(len(chunk))
    except SourceError as error:
        if have and "(416)" in error.what:
            _discard(wanted)
            raise PassingError(error.what, where=error.where, remedy=trouble.KEPT, wait=0) from error
        raise
    if total is not None and _size(wanted.part) != total:
        raise PassingError(
            f"the connection was cut at {_size(wanted.part):,} of {total:,} bytes",
            where=trouble.shown(wanted.url),
            remedy=trouble.KEPT,
        )


def _resumable(wanted: Wanted) -> tuple[int, str]:
    """Bytes that are there, and the name of their version. Without that name only a known hash allows to go on."""
    have = _size(wanted.part)
    tag = wanted.tag.read_text(encoding="utf-8") if wanted.tag.is_file() else ""
    too_long = wanted.size is not None and have > wanted.size
    return (0, "") if too_long or not (tag or wanted.sha256) else (have, tag)


def _start(response: httpx2.Response, have: int, wanted: Wanted) -> int:
    if response.status_code != 206:
        return 0
    if response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        return have
    _discard(wanted)
    raise PassingError(
        "the server sent another part than asked for", where=trouble.shown(wanted.url), remedy=trouble.KEPT
    )


def _total(response: httpx2.Response, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() and _plain(response) else None


def _fits(total: int | None, wanted: Wanted) -> None:
    if total is not None and wanted.size is not None and total != wanted.size:
        _discard(wanted)
        raise SourceError(
            f"the server has {total:,} bytes where the hub lists {wanted.size:,}",
            where=trouble.shown(wanted.url),
            remedy="try again later, or another source",
        )


def _tag(response: httpx2.Response) -> str:
    """What If-Range may hold: a strong ETag or a date; "" where the server names its version by neither."""
    etag = str(response.headers.get("ETag", ""))
    if not _plain(response):
        return ""
    return etag if etag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _plain(response: httpx2.Response) -> bool:
    return bool(response.headers.get("Content-Encoding", "identity") == "identity")


def _verify(path: Path, wanted: Wanted) -> None:
    place, size = trouble.shown(wanted.url), path.stat().st_size
    if wanted.size is not None and size != wanted.size:
        raise SourceError(f"{size:,} bytes came where {wanted.size:,} are listed", where=place, remedy=trouble.KEPT)
    proof.check(path, wanted.path.name, where=place)
    if wanted.sha256:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted.sha256.lower():
            raise SourceError(
                f"the file's hash is {found[:12]}…, the hub lists {wanted.sha256[:12]}…",
                where=place,
                remedy="try again later, or another source",
            )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _discard(wanted: Wanted) -> None:
    wanted.part.unlink(missing_ok=True)
    wanted.tag.unlink(missing_ok=True)
