"""Resolves the path of an image, as written in a data file, to the image's file.

Images inside another file (a data URI, a member of a tar or zip) are extracted into one folder and named by a hash of
their content: each is written once, reused by the next run, and cannot leave that folder whatever the archive calls
it. Knows nothing about data formats, and does not open images.
"""

import base64
import hashlib
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import atomic_write
from lorgnette.types import Image

MAX_IMAGE_BYTES = 256 * 1024**2
"""Largest image inside another file; anything larger is a decompression bomb or no image."""
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)
_DATA_URI = re.compile(r"data:image/([a-z0-9.+-]+)(?:;[^,;]*)*;base64,", re.IGNORECASE)
_SUFFIXES = {"jpeg": "jpg", "svg+xml": "svg"}


class CannotExtractError(LorgnetteError):
    """An image could not be written to disk. No fault of its row, so reading stops."""


class ImageResolver:
    """Finds the images of one source's rows."""

    def __init__(
        self,
        source: Path,
        *,
        folders: Sequence[Path] = (),
        images_from: Path | None = None,
        images_to: Path | None = None,
        locate_image: Callable[[str, int | None], Path] | None = None,
    ) -> None:
        """folders: the starts of relative paths; the first folder that has the file wins. Default: the source's folder.
        images_from: a folder or zip that is searched first, by the path as written, then by the file name alone.
        images_to: the folder for extracted images. Default: `<source>.images`, or `<zip>.images`.
        locate_image: (path or URL, COCO id) → the path of an image that is downloaded later; asked instead of folders.
        """
        self._locate_image = locate_image
        self._folders = [Path(os.path.abspath(folder)) for folder in folders] or [source.parent]
        images_from = None if images_from is None else Path(os.path.abspath(images_from))
        self._images_folder = images_from if images_from and images_from.is_dir() else None
        self._zip = ImageZip(images_from) if images_from and not self._images_folder else None
        container = images_from if images_from and self._zip else source
        self._extract_to = Path(os.path.abspath(images_to or container.with_name(f"{container.name}.images")))
        self._extracted: dict[str, Image] = {}
        self._cached_find_file = lru_cache(maxsize=None)(self._find_file)  # many captions name the same image

    def resolve(self, text: str, *, fallback_folder: Path | None = None, coco_id: int | None = None) -> Image:
        """The image at a path as written, or inside a data URI. The image need not exist and is not opened.

        fallback_folder: one more start of relative paths, tried last. The result is absolute and normalized; `~` is
        an ordinary character. Raises LorgnetteError for an empty path, a URL, or an image that cannot be extracted.
        """
        path = text.strip()
        if not path:
            raise LorgnetteError("an image path is empty", hint="write the path, or remove the row")
        if match := _DATA_URI.match(path):
            try:
                content = base64.b64decode("".join(path[match.end() :].split()), validate=True)
            except ValueError as error:
                raise LorgnetteError(f"a data URI is broken: {error}", hint="encode the image again") from error
            if not content:
                raise LorgnetteError("a data URI is empty", hint="encode the image again, or remove the row")
            kind = match[1].lower()
            return self.extract(content, _SUFFIXES.get(kind, kind))
        if "\0" in path:
            raise LorgnetteError("an image path has a NUL character", hint="correct the path")
        if path.lower().startswith("file://"):
            path = unquote(urlsplit(path).path)
        elif _URL.match(path) and self._locate_image is None:
            message = f"an image path is a URL, not a file: {path if len(path) <= 60 else path[:57] + '…'}"
            raise LorgnetteError(message, hint="download the image, and write its path")
        if self._locate_image is not None and (self._zip is None or self._zip.find_member(path) is None):
            return Image(self._locate_image(path, coco_id))
        return self._cached_find_file(path, fallback_folder)

    def _find_file(self, written: str, fallback_folder: Path | None) -> Image:
        if self._zip is not None and (member := self._zip.find_member(written)):
            if member not in self._extracted:
                self._extracted[member] = self.extract(self._zip.read(member), PurePosixPath(member).suffix)
            return self._extracted[member]
        # An absolute path replaces the folder before it.
        paths = [folder / written for folder in (*self._folders, *([fallback_folder] if fallback_folder else ()))]
        if folder := self._images_folder:
            paths = [folder / written.lstrip("/"), folder / os.path.basename(written), *paths]
        paths = list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
        existing = paths if len(paths) == 1 else [path for path in paths if os.path.exists(path)]
        return Image((existing or paths)[0])

    def extract(self, content: bytes, suffix: str) -> Image:
        """Write an image's bytes to a file. The suffix is only for people: the content tells the format.

        Raises CannotExtractError if the file cannot be written, LorgnetteError above MAX_IMAGE_BYTES.
        """
        if len(content) > MAX_IMAGE_BYTES:
            message = f"an image inside the file has {len(content):,} bytes"
            raise LorgnetteError(message, hint="scale it down, or remove its row")
        plain = re.sub(r"[^a-z0-9]", "", suffix.lower())[:5]
        path = self._extract_to / f"{hashlib.sha256(content).hexdigest()[:32]}{'.' if plain else ''}{plain}"
        if not (path.exists() and path.stat().st_size == len(content)):
            try:
                with atomic_write(path) as temporary:
                    temporary.write_bytes(content)
            except LorgnetteError as error:
                message = f"images inside the data cannot be extracted: {error.message}"
                hint = "free some disk space, or name another folder (images_to)"
                raise CannotExtractError(message, where=str(self._extract_to), hint=hint) from error
        return Image(path)


def check_member_name(name: str) -> str:
    """The name of an archive's member; raises LorgnetteError if it leads out of the archive's own folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        hint = "do not trust this archive: get it again from its source, or remove the member"
        raise LorgnetteError(f"a member of the archive leaves its folder: {name[:80]!r}", hint=hint)
    return name


def read_member(stream: IO[bytes], name: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The content of an archive's member, at most max_bytes whatever size it claims to have."""
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        message = f"{name!r} unpacks to more than {max_bytes:,} bytes"
        raise LorgnetteError(message, hint="remove it from the archive (a bomb, or no image)")
    return content


class ImageZip:
    """A zip of images, searched by path, then by file name alone if only one member has that name."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UsageError("does not exist", where=f"images_from {path}", hint="name a folder or a zip of images")
        try:
            self._file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            message, hint = f"neither a folder nor a readable zip: {error}", "name a folder, or get the zip again"
            raise UsageError(message, where=f"images_from {path}", hint=hint) from error
        self._path = path

    @cached_property
    def _members(self) -> dict[str, str | None]:
        """Path or file name → member; None if several members have the file name."""
        names = {name: PurePosixPath(name).name for name in self._file.namelist() if not name.endswith("/")}
        counts = Counter(names.values())
        by_file_name = {file_name: name if counts[file_name] == 1 else None for name, file_name in names.items()}
        return by_file_name | {name: name for name in names}

    def find_member(self, written: str) -> str | None:
        plain = written.removeprefix("./")
        return self._members.get(plain) or self._members.get(PurePosixPath(plain).name)

    def read(self, member: str) -> bytes:
        try:
            with self._file.open(check_member_name(member)) as stream:
                return read_member(stream, member)
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            message = f"{member!r} cannot be unpacked: {error}"
            raise LorgnetteError(message, where=str(self._path), hint="get the zip again") from error
