"""Is a file what its name says? Its first bytes and its end tell; a picture that does not end properly is decoded.

Knows nothing about where a file came from.
"""

import os
from pathlib import Path
from typing import IO

import PIL.Image

from lorgnette.hub.trouble import SourceError

SUFFIXES = {"jpeg": ".jpg", "png": ".png", "gif": ".gif", "webp": ".webp", "bmp": ".bmp", "tiff": ".tif"}
PICTURES = frozenset({".jpg", ".jpeg", *SUFFIXES.values(), ".tiff"})
_STARTS = (
    (b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)  # fmt: skip
_OTHERS = {".zip": (b"PK\x03\x04", b"PK\x05\x06"), ".parquet": (b"PAR1",)}


def kind(head: bytes) -> str | None:
    """A picture's format by its first twelve bytes; None: no picture known here."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in _STARTS if head.startswith(start)), None)


def check(file: Path, name: str, *, where: str) -> None:
    """Raise SourceError where `file` is not what `name` says, or was cut off."""
    suffix = Path(name).suffix.lower()
    with file.open("rb") as opened:
        head = opened.read(512)
        whole = suffix not in PICTURES or _ends(opened, kind(head))
    if _is_page(head) and suffix not in (".html", ".htm", ".xml", ".svg"):
        raise SourceError(
            f"a web page came instead of {name}",
            where=where,
            remedy="open the address in a browser to see what it says",
        )
    if starts := _OTHERS.get(suffix):
        if not head.startswith(starts):
            raise SourceError(f"this is no {suffix[1:]} file: {_told(head)}", where=where, remedy="try another source")
    elif suffix in PICTURES:
        if kind(head) is None:
            raise SourceError(f"this is no picture: {_told(head)}", where=where, remedy="try another source")
        if not whole and not _decodes(file):
            raise SourceError("the picture is cut off", where=where, remedy="try another source")


def _is_page(head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<error"))


def _told(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head.isascii() and head.decode().isprintable():
        return f"it begins with {head[:40].decode()!r}"
    return f"it begins with the bytes {head[:8].hex(' ')}"


def _ends(file: IO[bytes], format: str | None) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 12))
    tail = file.read()
    if format == "webp":
        file.seek(4)
        return size >= int.from_bytes(file.read(4), "little") + 8
    ends = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "gif": b"\x3b"}
    return format in ends and tail.endswith(ends[format])


def _decodes(file: Path) -> bool:
    try:
        with PIL.Image.open(file) as picture:
            picture.load()
    except Exception:  # whatever a decoder says about strange bytes: it is no whole picture
        return False
    return True
