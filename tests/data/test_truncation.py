import io
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from lorgnette.data import truncation


def complete(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(5)  # wherever it has been read
        return truncation.is_complete(file)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_cut_of_a_whole_picture_is_suspected(picture: Callable[..., Path], suffix: str) -> None:
    whole = picture(f"a.{suffix}")
    content = whole.read_bytes()
    assert complete(whole)
    cut = whole.with_name(f"cut.{suffix}")
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        assert not complete(cut), length


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_preallocated_download_is_suspected(picture: Callable[..., Path], suffix: str) -> None:
    whole = picture(f"a.{suffix}", size=(200, 200))
    size = whole.stat().st_size
    whole.write_bytes(whole.read_bytes()[: size - 80].ljust(size, b"\0"))
    assert not complete(whole)


@pytest.mark.parametrize("suffix", ["gif", "bmp", "tif"])
def test_formats_that_cannot_say_are_suspected(picture: Callable[..., Path], suffix: str) -> None:
    assert not complete(picture(f"a.{suffix}"))


def test_junk_behind_a_png_does_not_matter_behind_a_jpeg_it_does(picture: Callable[..., Path]) -> None:
    for name, expected in (("a.png", True), ("a.jpg", False)):
        path = picture(name)
        path.write_bytes(path.read_bytes() + b"junk")
        assert complete(path) is expected


def test_late_metadata(tmp_path: Path) -> None:
    image, info = Image.new("RGB", (3, 3)), PngImagePlugin.PngInfo()
    info.add_text("a", "b")
    early, late = tmp_path / "early.png", tmp_path / "late.png"
    image.save(early, pnginfo=info)
    chunk = b"eXIfII*\0"
    image.save(late)
    whole = late.read_bytes()
    late.write_bytes(whole[:-12] + b"\0\0\0\4" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + whole[-12:])
    for path, expected in ((early, False), (late, True)):
        with path.open("rb") as file:
            file.seek(5)
            assert truncation.has_late_metadata(file) is expected
            assert file.tell() == 5


def jpeg(**how: Any) -> bytes:
    noise = Image.frombytes("RGB", (160, 120), Random(3).randbytes(160 * 120 * 3))
    noise.save(buffer := io.BytesIO(), "JPEG", **{"quality": 90, **how})
    return buffer.getvalue()


def scan_of(content: bytes) -> int:
    """Where the only scan of a JPEG without a thumbnail begins."""
    at = content.index(b"\xff\xda")
    return at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")


@pytest.mark.parametrize("how", [{}, {"restart_marker_rows": 1}, {"subsampling": 0}, {"optimize": True}])
def test_the_beginning_of_a_jpeg_is_a_jpeg(how: dict[str, Any]) -> None:
    content = jpeg(**how)
    begun = scan_of(content)
    beginning = truncation.truncate_jpeg(content, begun)
    assert beginning is not None
    assert len(beginning) - 2 == begun + round(0.4 * (len(content) - 2 - begun))
    part, whole = (Image.open(io.BytesIO(each)).convert("RGB") for each in (beginning, content))
    upper = (0, 0, 160, 32)
    assert part.crop(upper).tobytes() == whole.crop(upper).tobytes()
    assert part.getpixel((159, 119)) == (128, 128, 128)


def test_only_one_whole_scan_has_a_beginning() -> None:
    progressive, whole = jpeg(progressive=True), jpeg()
    begun = scan_of(whole)
    assert truncation.truncate_jpeg(progressive, scan_of(progressive)) is None
    assert truncation.truncate_jpeg(whole[:-2], begun) is None
    assert truncation.truncate_jpeg(whole + b"trailer", begun) is None
    at = len(whole) * 3 // 4
    assert truncation.truncate_jpeg(whole[:at] + b"\xff\xc4" + whole[at + 2 :], begun) is None
    assert truncation.truncate_jpeg(whole[:at] + Random(1).randbytes(2048) + whole[at + 2048 :], begun) is None
