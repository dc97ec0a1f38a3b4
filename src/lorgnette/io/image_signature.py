"""The image formats this project reads, recognized by a file's first bytes. Decodes nothing."""

import os
from typing import IO

HEAD_BYTES = 16
"""As many bytes of a file as `detect_image_format` looks at."""
SUFFIXES = {
    "jpeg": ".jpg", "png": ".png", "gif": ".gif", "webp": ".webp", "bmp": ".bmp", "tiff": ".tif", "avif": ".avif",
    "jp2": ".jp2", "ico": ".ico", "ppm": ".ppm",
    "heic": ".heic",
}  # fmt: skip
IMAGE_SUFFIXES = frozenset({".jpeg", ".tiff", *SUFFIXES.values()})
_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"), (b"\0\0\0\x0cjP  ", "jp2"), (b"\xff\x4f\xff\x51", "jp2"), (b"\0\0\1\0", "ico"),
    (b"P5", "ppm"), (b"P6", "ppm"),
)  # fmt: skip

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def detect_image_format(head: bytes) -> str | None:
    """The format of a file that starts with `head`; None if it is no image known here."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return "heic"
    return next((name for start, name in _SIGNATURES if head.startswith(start)), None)


def has_all_boxes(file: IO[bytes]) -> bool:
    """True only if the boxes of a HEIC or AVIF file end where the file ends, and not in zeros (ISO/IEC 14496-12)."""
    size, end = file.seek(0, os.SEEK_END), 0
    while end < size:
        file.seek(end)
        length = int.from_bytes(file.read(8)[:4], "big")
        if length < 8:  # up to the end of the file, or written in 8 bytes: no proof
            return False
        end += length
    file.seek(max(0, size - 64))
    return end == size and any(file.read(64))
