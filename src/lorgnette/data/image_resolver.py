"""Where a source's pictures lie: a path as written → a picture's file.

Pictures that lie inside another file (a data URI, a member of a tar or zip) are laid down in one folder, named by
their content: each is written once, is found again the next time, and cannot leave that folder whatever an archive
calls it. Knows nothing about forms of data and does not look into pictures.
"""

import base64
import binascii
import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import atomic_write
from lorgnette.types import Image

MAX_IMAGE_BYTES = 256 * 1024**2
"""Bytes of one picture inside another file; beyond it is a bomb, or no picture."""
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)
_DATA_URI = re.compile(r"data:image/([a-z0-9.+-]+)(?:;[^,;]*)*;base64,", re.IGNORECASE)
_SUFFIXES = {"jpeg": "jpg", "svg+xml": "svg"}


class CannotExtractError(LorgnetteError):
    """A picture could not be laid down. It is about the disk and not about a row, so that it ends the reading."""


class ImageResolver:
    """Looks a picture's path up for the rows of one source."""

    def __init__(
        self,
        source: Path,
        *,
        folders: Sequence[Path] = (),
        images_from: Path | None = None,
        images_to: Path | None = None,
    ) -> None:
        """folders: where relative paths start, the first that has the file; else the source's own folder.
        images_from: a folder or zip that is asked before them, by path as written and then by file name alone.
        pictures_to: where pictures inside other files are laid down; else `<source>.pictures`, or `<zip>.pictures`.
        """
        self._folders = [Path(os.path.abspath(folder)) for folder in folders] or [source.parent]
        self._images_folder: Path | None = None
        self._zip: _ImageZip | None = None
        if images_from is not None:
            images_from = Path(os.path.abspath(images_from))
            if images_from.is_dir():
                self._images_folder = images_from
            else:
                self._zip = _ImageZip(images_from)
        inside = source if self._zip is None or images_from is None else images_from
        self._extract_to = Path(os.path.abspath(images_to or inside.with_name(f"{inside.name}.pictures")))
        self._extracted: dict[str, Path] = {}
        self._cached_find_file = lru_cache(maxsize=None)(self._find_file)  # of many captions each names its picture

    def resolve(self, text: str, *, fallback_folder: Path | None = None) -> Image:
        """A picture's path as written. Where nothing is found the first place counts; nothing is looked into.

        The result is absolute and normalised; `~` is a character like any other.
        """
        written = text.strip()
        if not written:
            raise LorgnetteError("a picture's path is empty", hint="write the path, or remove the row")
        if inside := _DATA_URI.match(written):
            kind = inside[1].lower()
            return self.extract(_decode_base64(written[inside.end() :]), _SUFFIXES.get(kind, kind))
        if "\0" in written:
            raise LorgnetteError("a picture's path holds a NUL character", hint="correct the path")
        if written.lower().startswith("file://"):
            written = unquote(urlsplit(written).path)
        elif _URL.match(written):
            short = written if len(written) <= 60 else written[:57] + "…"
            raise LorgnetteError(
                f"a picture's path is an address, not a file: {short}", hint="download it, and write the file's path"
            )
        return self._cached_find_file(written, fallback_folder)

    def _find_file(self, written: str, fallback_folder: Path | None) -> Image:
        if self._zip is not None and (member := self._zip.find_member(written)):
            if member not in self._extracted:
                self._extracted[member] = self.extract(self._zip.read(member), PurePosixPath(member).suffix).path
            return Image(self._extracted[member])
        places = list(dict.fromkeys(self._candidate_paths(written, fallback_folder)))
        there = places if len(places) == 1 else [place for place in places if os.path.exists(place)]
        return Image(Path((there or places)[0]))

    def _candidate_paths(self, written: str, fallback_folder: Path | None) -> Iterator[str]:
        folders = (*self._folders, *([fallback_folder] if fallback_folder else ()))
        if self._images_folder is not None:
            yield os.path.abspath(self._images_folder / written.lstrip("/"))
            yield str(self._images_folder / os.path.basename(written))
        if os.path.isabs(written):
            yield os.path.abspath(written)
        else:
            yield from (os.path.abspath(folder / written) for folder in folders)

    def extract(self, content: bytes, suffix: str) -> Image:
        """A picture's bytes as a file of this shelf. The suffix only helps people: content says what a picture is."""
        if len(content) > MAX_IMAGE_BYTES:
            raise LorgnetteError(
                f"a picture inside the file has {len(content):,} bytes", hint="scale it down, or remove its row"
            )
        plain = re.sub(r"[^a-z0-9]", "", suffix.lower())[:5]
        path = self._extract_to / f"{hashlib.sha256(content).hexdigest()[:32]}{'.' if plain else ''}{plain}"
        if not (path.exists() and path.stat().st_size == len(content)):
            try:
                with atomic_write(path) as beside:
                    beside.write_bytes(content)
            except LorgnetteError as error:
                raise CannotExtractError(
                    f"pictures inside the data need a folder to lie in; {error.message}",
                    where=str(self._extract_to),
                    hint="free some space, or name another folder for them (pictures_to)",
                ) from error
        return Image(path)


def check_member_name(name: str) -> str:
    """An archive member's name, refused where it leads out of the archive's own folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise LorgnetteError(
            f"a member of the archive leaves its folder: {name[:80]!r}",
            hint="do not trust this archive: get it anew from its source, or remove the member",
        )
    return name


def read_member(stream: IO[bytes], name: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """What a member of an archive holds, whatever size it claims to have."""
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise LorgnetteError(
            f"{name!r} unpacks to more than {max_bytes:,} bytes",
            hint="remove it from the archive (a bomb, or no picture)",
        )
    return content


class _ImageZip:
    """A zip of pictures, asked by path and then by file name alone where only one has it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UsageError("does not exist", where=f"images_from {path}", hint="name a folder or a zip of pictures")
        try:
            self._file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise UsageError(
                f"neither a folder nor a zip that can be read: {error}",
                where=f"images_from {path}",
                hint="name a folder of pictures, or get the zip again",
            ) from error
        self._path = path

    @cached_property
    def _members(self) -> dict[str, str | None]:
        """Path or lone file name → member; None where a file name is borne by several."""
        names = [name for name in self._file.namelist() if not name.endswith("/")]
        bare: dict[str, str | None] = {}
        for name in names:
            last = PurePosixPath(name).name
            bare[last] = None if last in bare else name
        return bare | {name: name for name in names}

    def find_member(self, written: str) -> str | None:
        plain = written.removeprefix("./")
        return self._members.get(plain) or self._members.get(PurePosixPath(plain).name)

    def read(self, member: str) -> bytes:
        try:
            with self._file.open(check_member_name(member)) as stream:
                return read_member(stream, member)
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise LorgnetteError(
                f"{member!r} cannot be unpacked: {error}", where=str(self._path), hint="get the zip again"
            ) from error


def _decode_base64(text: str) -> bytes:
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise LorgnetteError(f"a data URI is broken: {error}", hint="encode the picture again as base64") from error
    if not content:
        raise LorgnetteError("a data URI holds no bytes", hint="encode the picture again, or remove the row")
    return content
