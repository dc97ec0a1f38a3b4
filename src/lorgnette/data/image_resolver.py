"""Resolves the path of an image, as written in a data file, to the image's file.

Images inside another file (a data URI, a member of a tar or zip) are extracted into one folder and named by a hash of
their content: each is written once, reused by the next run, and cannot leave that folder whatever the archive calls
it. Knows nothing about data formats, and does not open images.
"""

import base64
import hashlib
import os
import re
import string
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from urllib.parse import unquote

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import atomic_write
from lorgnette.io.image_signature import HEAD_BYTES, SUFFIXES, detect_image_format
from lorgnette.io.paths import get_base_name, suggest_path
from lorgnette.types import Image

MAX_IMAGE_BYTES = 256 * 1024**2
"""Largest image inside another file; anything larger is a decompression bomb or no image."""
_ROOT = re.compile(r"^(?:[A-Za-z]:)?/*")
_SEPARATORS = re.compile(r"[/\\]")
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)
_DATA_URI = re.compile(r"data:image/([a-z0-9.+-]+)(?:;[^,;]*)*;base64,", re.IGNORECASE)
_SUFFIXES = {"jpeg": "jpg", "svg+xml": "svg"}
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")
_FROM_URL_SAFE = str.maketrans("-_", "+/", string.whitespace)
_MIN_BASE64 = 64
"""No image has fewer characters in base64, and few file names without a dot have as many."""
_MAX_BASE64_PATH = 500
"""No path has more characters without a dot in its file's name."""
_MAX_NAME_BYTES = 255
"""Of one name in a path, on every system."""
_NAME_ENCODINGS = ("utf-8", "gb18030", "cp932", "cp949", "big5", "cp1252", "cp1251")
"""In which old programs write the names of a zip, without saying so."""
_UTF8_FLAG = 0x800


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

    @property
    def has_open_file(self) -> bool:
        """Whether images are read from a zip, which stays open."""
        return self._zip is not None

    def resolve(self, text: str, *, fallback_folder: Path | None = None, coco_id: int | None = None) -> Image:
        """The image at a path as written, in a data URI, or in base64. The image need not exist and is not opened.

        fallback_folder: one more start of relative paths, tried last. The result is absolute and normalized; `~` is
        an ordinary character, and `\\` separates folders if no file has it in its name. Raises LorgnetteError for an
        empty path, a URL, or an image that cannot be extracted.
        """
        path = text.strip()
        if not path:
            raise LorgnetteError("an image path is empty", hint="write the path, or remove the row")
        if match := _DATA_URI.match(path):
            kind = match[1].lower()
            return self.extract(decode_base64(path[match.end() :], "a data URI"), _SUFFIXES.get(kind, kind))
        if image_format := _detect_base64_image(path):
            return self.extract(decode_base64(path, "an image in base64"), SUFFIXES[image_format])
        if len(path) > _MAX_BASE64_PATH and _BASE64.fullmatch(path):
            message = f"{len(path):,} characters of base64 are no image in a known format: {_shorten(path)}"
            raise LorgnetteError(message, hint="encode the image again, or write its path")
        if "\0" in path:
            raise LorgnetteError("an image path has a NUL character", hint="correct the path")
        if path.lower().startswith("file://"):
            path = _parse_file_url(path)
        elif _URL.match(path) and self._locate_image is None:
            raise build_url_error(path)
        elif 4 * len(path) > _MAX_NAME_BYTES and _has_long_name(path) and not _URL.match(path):
            message = f"an image path has {len(path):,} characters, more than a file name can have: {_shorten(path)}"
            raise LorgnetteError(message, hint="write a path; an image as text begins with data:image/png;base64,")
        if self._locate_image is not None and (self._zip is None or self._zip.find_member(path) is None):
            return Image(self._locate_image(path, coco_id))
        return self._cached_find_file(path, fallback_folder)

    def _find_file(self, written: str, fallback_folder: Path | None) -> Image:
        if self._zip is not None and (match := self._zip.find_member(written)):
            if match.member not in self._extracted:
                content, suffix = self._zip.read(match.member), PurePosixPath(match.member).suffix
                self._extracted[match.member] = self.extract(content, suffix)
            image = self._extracted[match.member]
            return Image(image.path, written) if match.is_by_name else image
        # A path of Windows is tried as written, then with slashes. An absolute path replaces the folder before it.
        spellings = [written, written.replace("\\", "/")] if "\\" in written else [written]
        folders = [*self._folders, *([fallback_folder] if fallback_folder else ())]
        # Texts: a Path for each step would take half of the time of a row.
        paths = [os.path.join(folder, spelling) for spelling in spellings for folder in folders]
        inside: list[str] = []
        by_name = None
        if folder := self._images_folder:
            inside = [os.path.join(folder, spelling.lstrip("/")) for spelling in spellings]
            inside += [os.path.join(folder, _ROOT.sub("", spelling)) for spelling in spellings[1:]]
            by_name = os.path.join(folder, get_base_name(written))
            paths = [*inside, by_name, *paths]
        paths = list(dict.fromkeys(map(os.path.abspath, paths)))
        existing = paths if len(paths) == 1 else [path for path in paths if os.path.exists(path)]
        path = (existing or paths)[0]
        is_by_name = bool(existing) and path == by_name and path not in map(os.path.abspath, inside)
        return Image(Path(path), written) if is_by_name else Image(Path(path))

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


def is_url(path: str) -> bool:
    """Whether it is the address of something elsewhere. A path has a single slash where an address has two."""
    return path.lower().startswith(("http:/", "https:/"))


def build_url_error(path: str) -> LorgnetteError:
    """The error for an address where a file is needed."""
    message = f"an image path is a URL, not a file: {_shorten(path)}"
    return LorgnetteError(message, hint="download the image, and write its path")


def _detect_base64_image(text: str) -> str | None:
    """The format of the image that this text is in base64; None if it is none, such as a path."""
    if len(text) < _MIN_BASE64 or not _BASE64.fullmatch(text):
        return None
    head = _remove_blanks(text[: 4 * HEAD_BYTES])
    return detect_image_format(base64.b64decode(head[: len(head) // 4 * 4]))


def _remove_blanks(text: str) -> str:
    """Base64 without line breaks, in the letters that b64decode reads."""
    return text.translate(_FROM_URL_SAFE)


def decode_base64(text: str, name: str) -> bytes:
    """The bytes of a base64 text, in either alphabet, with line breaks or without. Raises LorgnetteError."""
    try:
        content = base64.b64decode(_remove_blanks(text), validate=True)
    except ValueError as error:
        raise LorgnetteError(f"{name} is broken: {error}", hint="encode the image again") from error
    if not content:
        raise LorgnetteError(f"{name} is empty", hint="encode the image again, or remove the row")
    return content


def _has_long_name(path: str) -> bool:
    return max(len(os.fsencode(name)) for name in _SEPARATORS.split(path)) > _MAX_NAME_BYTES


def _parse_file_url(url: str) -> str:
    """The path in file:///path; # and ? belong to it. Raises LorgnetteError for the path of another machine."""
    host, slash, path = url[len("file://") :].partition("/")
    if host.lower() not in ("", "localhost"):
        message = f"an image path is a file on another machine, {host[:60]!r}: {_shorten(url)}"
        raise LorgnetteError(message, hint="copy the image to this machine, and write its path")
    return unquote(slash + path)


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"


def _list_other_spellings(info: zipfile.ZipInfo) -> Iterator[str]:
    """What the name of a member may be, if it does not say that it is UTF-8: zipfile reads it as code page 437."""
    if info.flag_bits & _UTF8_FLAG or info.filename.isascii():
        return
    with suppress(UnicodeEncodeError):
        content = info.filename.encode("cp437")
        for encoding in _NAME_ENCODINGS:
            with suppress(UnicodeDecodeError):
                yield content.decode(encoding)


class MemberMatch(NamedTuple):
    """A member of a zip. is_by_name: found by its file name alone."""

    member: str
    is_by_name: bool


class ImageZip:
    """A zip of images, searched by path, then by file name alone if only one member has that name."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            hint = suggest_path(path, "name a folder or a zip of images")
            raise UsageError("does not exist", where=f"images_from {path}", hint=hint)
        try:
            self._file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            message, hint = f"neither a folder nor a readable zip: {error}", "name a folder, or get the zip again"
            raise UsageError(message, where=f"images_from {path}", hint=hint) from error
        self._path = path

    @cached_property
    def _by_path(self) -> dict[str, str]:
        """Path → member. A name without the mark of UTF-8 may have any encoding, and gets a path for each."""
        members = [info for info in self._file.infolist() if not info.is_dir()]
        paths = {info.filename: info.filename for info in members}
        for info in members:
            for path in _list_other_spellings(info):
                paths.setdefault(path, info.filename)
        return paths

    @cached_property
    def _by_name(self) -> dict[str, str | None]:
        """File name → member; None if several members have it."""
        by_name: dict[str, str | None] = {}
        for path, member in self._by_path.items():
            name = get_base_name(path)
            by_name[name] = member if by_name.get(name, member) == member else None
        return by_name

    def find_member(self, written: str) -> MemberMatch | None:
        """The member at a path as written, with / or \\ between its folders."""
        for path in (written.removeprefix("./"), written.replace("\\", "/").removeprefix("./")):
            if member := self._by_path.get(path):
                return MemberMatch(member, is_by_name=False)
        member = self._by_name.get(get_base_name(written))
        return MemberMatch(member, is_by_name=True) if member else None

    def read(self, member: str) -> bytes:
        try:
            with self._file.open(check_member_name(member)) as stream:
                return read_member(stream, member)
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            message = f"{member!r} cannot be unpacked: {error}"
            raise LorgnetteError(message, where=str(self._path), hint="get the zip again") from error
