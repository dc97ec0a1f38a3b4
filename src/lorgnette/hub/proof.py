"""Is a file what its name says? Its first bytes and its end tell; a picture that does not end properly is decoded.

Knows nothing about where a file came from.
"""

import os
from pathlib import Path
from typing import IO

import PIL.Image

from lorgnette.hub.trouble import SourceError

SUFFIXES = {"jpeg": ".jpg", "png": ".png", "gif": ".gif", "webp": ".webp", "bmp": ".bmp", "tiff": ".tif"}
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", *SUFFIXES.values(), ".tiff"})
_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)  # fmt: skip
_OTHER_SIGNATURES = {".zip": (b"PK\x03\x04", b"PK\x05\x06"), ".parquet": (b"PAR1",)}


def detect_image_format(head: bytes) -> str | None:
    """A picture's format by its first twelve bytes; None: no picture known here."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in _SIGNATURES if head.startswith(start)), None)


def check_file(file: Path, name: str, *, where: str) -> None:
    """Raise SourceError where `file` is not what `name` says, or was cut off."""
    suffix = Path(name).suffix.lower()
    with file.open("rb") as opened:
        head = opened.read(512)
        whole = suffix not in IMAGE_SUFFIXES or _has_end_marker(opened, detect_image_format(head))
    if _is_web_page(head) and suffix not in (".html", ".htm", ".xml", ".svg"):
        raise SourceError(
            f"a web page came instead of {name}",
            where=where,
            hint="open the address in a browser to see what it says",
        )
    if starts := _OTHER_SIGNATURES.get(suffix):
        if not head.startswith(starts):
            raise SourceError(
                f"this is no {suffix[1:]} file: {_describe_head(head)}", where=where, hint="try another source"
            )
    elif suffix in IMAGE_SUFFIXES:
        if detect_image_format(head) is None:
            raise SourceError(f"this is no picture: {_describe_head(head)}", where=where, hint="try another source")
        if not whole and not _can_decode(file):
            raise SourceError("the picture is cut off", where=where, hint="try another source")


def _is_web_page(head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<error"))


def _describe_head(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head.isascii() and head.decode().isprintable():
        return f"it begins with {head[:40].decode()!r}"
    return f"it begins with the bytes {head[:8].hex(' ')}"


def _has_end_marker(file: IO[bytes], format: str | None) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 12))
    tail = file.read()
    if format == "webp":
        file.seek(4)
        return size >= int.from_bytes(file.read(4), "little") + 8
    ends = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "gif": b"\x3b"}
    return format in ends and tail.endswith(ends[format])


def _can_decode(file: Path) -> bool:
    try:
        with PIL.Image.open(file) as picture:
            picture.load()
    except Exception:  # whatever a decoder says about strange bytes: it is no whole picture
        return False
    return True
