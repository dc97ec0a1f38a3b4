"""Is a downloaded file what its name says? Its first bytes and its end tell.

An image without a proper end is decoded to be sure. Knows nothing about where a file came from.
"""

import os
from pathlib import Path
from typing import IO

import PIL.Image

from lorgnette.errors import SourceError
from lorgnette.io.image_signature import IMAGE_SUFFIXES, detect_image_format, has_all_boxes

_OTHER_SIGNATURES = {".zip": (b"PK\x03\x04", b"PK\x05\x06"), ".parquet": (b"PAR1",)}


def check_file(file: Path, name: str, *, where: str) -> None:
    """Raise SourceError if `file` is not what `name` says, or was cut off."""
    suffix = Path(name).suffix.lower()
    with file.open("rb") as stream:
        head = stream.read(512)
        has_end = suffix not in IMAGE_SUFFIXES or _has_end_marker(stream, detect_image_format(head))
    if _is_web_page(head) and suffix not in (".html", ".htm", ".xml", ".svg"):
        hint = "open the URL in a browser to see what it says"
        raise SourceError(f"got a web page instead of {name}", where=where, hint=hint)
    if signatures := _OTHER_SIGNATURES.get(suffix):
        if not head.startswith(signatures):
            message = f"not a {suffix[1:]} file: {_describe_head(head)}"
            raise SourceError(message, where=where, hint="try another source")
    elif suffix in IMAGE_SUFFIXES:
        if detect_image_format(head) is None:
            raise SourceError(f"not an image: {_describe_head(head)}", where=where, hint="try another source")
        if not has_end and not _can_decode(file):
            raise SourceError("the image is cut off", where=where, hint="try another source")


def _is_web_page(head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<error"))


def _describe_head(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head.isascii() and head.decode().isprintable():
        return f"it starts with {head[:40].decode()!r}"
    return f"it starts with the bytes {head[:8].hex(' ')}"


def _has_end_marker(file: IO[bytes], format: str | None) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 12))
    tail = file.read()
    if format in ("avif", "heic"):
        return has_all_boxes(file)
    if format == "webp":
        file.seek(4)
        return size >= int.from_bytes(file.read(4), "little") + 8
    markers = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "gif": b"\x3b"}
    return format in markers and tail.endswith(markers[format])


def _can_decode(file: Path) -> bool:
    try:
        with PIL.Image.open(file) as image:
            image.load()
    except Exception:  # a decoder raises many types on broken bytes; all mean that the image is not complete
        return False
    return True
