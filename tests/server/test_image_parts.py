"""Small files that take seconds to hours to open, and files of programs that do not."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from lorgnette.server.image_parts import has_too_many_parts

NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))


def write(kind: str, image: PIL.Image.Image = NOISE, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


JPEG, PROGRESSIVE, PNG = write("JPEG"), write("JPEG", progressive=True), write("PNG")
GIF = write("GIF", NOISE.convert("P"))
BMP = write("BMP")
GIF_HEAD = 13 + 3 * 256
LAST_SCAN = PROGRESSIVE[[match.start() for match in re.finditer(rb"\xff\xda", PROGRESSIVE)][-1] : -2]

HOSTILE: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "scans": ("jpeg", lambda n: PROGRESSIVE[:-2] + LAST_SCAN * n + PROGRESSIVE[-2:]),
    "comments": ("jpeg", lambda n: JPEG[:2] + b"\xff\xfe\0\2" * n + JPEG[2:]),
    "EXIF that grows": ("jpeg", lambda n: JPEG[:2] + b"\xff\xe1\0\x08Exif\0\0" * n + JPEG[2:]),
    "restarts in the header": ("jpeg", lambda n: JPEG[:2] + b"\xff\xd0" * n + JPEG[2:]),
    "fill bytes": ("jpeg", lambda n: JPEG[:2] + b"\xff" * n + JPEG[2:]),
    "fill bytes and no end": ("jpeg", lambda n: JPEG[:2] + b"\xff" * n),
    "junk": ("jpeg", lambda n: JPEG[:2] + b"a" * n + JPEG[2:]),
    "junk and no end": ("jpeg", lambda n: JPEG[:2] + b"a" * n),
    "segments that begin again": ("jpeg", lambda n: JPEG[:2] + b"\xff\xd8" * n + JPEG[2:]),
    "chunks before the pixels": ("png", lambda n: PNG[:33] + write_chunk(b"prVt", b"") * n + PNG[33:]),
    "chunks behind the pixels": ("png", lambda n: PNG[:-12] + write_chunk(b"tEXt", b"a\0b") * n + PNG[-12:]),
    "pixels in crumbs": ("png", lambda n: PNG[:33] + write_chunk(b"IDAT", b"") * n + PNG[33:]),
    "extensions": ("gif", lambda n: GIF[:GIF_HEAD] + b"!\xfe\1a\0" * n + GIF[GIF_HEAD:]),
    "blocks of an extension": ("gif", lambda n: GIF[:GIF_HEAD] + b"!\xfe" + b"\1a" * n + b"\0" + GIF[GIF_HEAD:]),
    "bytes that mean nothing": ("gif", lambda n: GIF[:GIF_HEAD] + b"a" * n + GIF[GIF_HEAD:]),
    "run lengths": ("bmp", lambda n: BMP[:30] + b"\1\0\0\0" + BMP[34:54] + b"\1\0" * n),
}


@pytest.mark.parametrize(("image_format", "build"), HOSTILE.values(), ids=HOSTILE)
def test_files_of_endless_parts_are_found(image_format: str, build: Callable[[int], bytes]) -> None:
    assert has_too_many_parts(build(50_000), image_format)
    assert not has_too_many_parts(build(20), image_format)


def test_a_run_of_fill_bytes_is_read_once() -> None:
    """A search that begins anew at each of them takes hours here, and Python's lock keeps all other threads waiting."""
    assert has_too_many_parts(JPEG[:2] + b"\xff" * 2_000_000, "jpeg")
    scans = b"\xff\xda\0\2" * 63
    assert not has_too_many_parts(JPEG[:2] + scans + b"\xff" * 2_000_000 + b"\xff\xda\0", "jpeg")


def test_what_programs_write_passes() -> None:
    text = PngInfo()
    for number in range(200):
        text.add_text(f"key {number}", "value")
    frames = [NOISE.convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=n) for n in (8, 64, 256)]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 60_000
    files = [
        ("jpeg", JPEG), ("jpeg", PROGRESSIVE), ("png", PNG), ("gif", GIF), ("bmp", BMP), ("webp", write("WEBP")),
        ("avif", write("AVIF")), ("jpeg", write("JPEG", exif=exif, icc_profile=b"\xff\xda" * 300_000)),
        ("jpeg", write("JPEG", restart_marker_blocks=1)), ("jpeg", write("JPEG", comment=b"\xff\xda" * 30_000)),
        ("png", write("PNG", pnginfo=text)), ("png", write("PNG", frames[0], save_all=True, append_images=frames[1:])),
        ("gif", write("GIF", frames[0], save_all=True, append_images=frames[1:] * 30, comment=b"x" * 60_000)),
        ("gif", write("GIF", NOISE.convert("L"))), ("bmp", write("BMP", NOISE.convert("P"))),
        ("jpeg", JPEG + b"\xff\xda\0\2" * 50_000),  # a film behind the photograph, as telephones write it
    ]  # fmt: skip
    assert [kind for kind, content in files if has_too_many_parts(content, kind)] == []


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "webp", "avif", "heic"])
def test_broken_files_are_left_to_their_reader(kind: str) -> None:
    """Whatever is cut off ends the count; no file makes it fail."""
    whole = {"jpeg": PROGRESSIVE, "png": PNG, "gif": GIF, "bmp": BMP}.get(kind, b"RIFF")
    for end in (*range(60), len(whole) // 2, len(whole) - 1):
        assert not has_too_many_parts(whole[:end], kind)
