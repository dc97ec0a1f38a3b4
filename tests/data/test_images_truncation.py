import io
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from lorgnette.data import images


def check_complete(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(5)  # the position must not matter
        return images.is_complete(file)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_truncated_file_is_never_complete(make_image: Callable[..., Path], suffix: str) -> None:
    whole = make_image(f"a.{suffix}")
    content = whole.read_bytes()
    assert check_complete(whole)
    cut = whole.with_name(f"cut.{suffix}")
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        assert not check_complete(cut), length


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_preallocated_file_is_not_complete(make_image: Callable[..., Path], suffix: str) -> None:
    whole = make_image(f"a.{suffix}", size=(200, 200))
    size = whole.stat().st_size
    whole.write_bytes(whole.read_bytes()[: size - 80].ljust(size, b"\0"))
    assert not check_complete(whole)


@pytest.mark.parametrize("suffix", ["gif", "bmp", "tif"])
def test_other_formats_are_never_complete(make_image: Callable[..., Path], suffix: str) -> None:
    assert not check_complete(make_image(f"a.{suffix}"))


def test_trailing_bytes_are_allowed_in_a_png_not_in_a_jpeg(make_image: Callable[..., Path]) -> None:
    for name, expected in (("a.png", True), ("a.jpg", False)):
        path = make_image(name)
        path.write_bytes(path.read_bytes() + b"junk")
        assert check_complete(path) is expected


def test_metadata_behind_the_pixels_is_found(tmp_path: Path) -> None:
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
            assert images.has_late_metadata(file) is expected
            assert file.tell() == 5


def encode_jpeg(**options: Any) -> bytes:
    noise = Image.frombytes("RGB", (160, 120), Random(3).randbytes(160 * 120 * 3))
    noise.save(buffer := io.BytesIO(), "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def find_scan(content: bytes) -> int:
    """The start of the only scan of a JPEG without a thumbnail."""
    at = content.index(b"\xff\xda")
    return at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"subsampling": 0}, {"optimize": True}])
def test_a_truncated_jpeg_has_an_exact_upper_part(options: dict[str, Any]) -> None:
    content = encode_jpeg(**options)
    scan_start = find_scan(content)
    head = images.truncate_jpeg(content, scan_start)
    assert head is not None
    assert len(head) - 2 == scan_start + round(0.4 * (len(content) - 2 - scan_start))
    part, whole = (Image.open(io.BytesIO(file)).convert("RGB") for file in (head, content))
    upper = (0, 0, 160, 32)
    assert part.crop(upper).tobytes() == whole.crop(upper).tobytes()
    assert part.getpixel((159, 119)) == (128, 128, 128)


def test_only_a_jpeg_with_one_whole_scan_is_truncated() -> None:
    progressive, whole = encode_jpeg(progressive=True), encode_jpeg()
    scan_start = find_scan(whole)
    assert images.truncate_jpeg(progressive, find_scan(progressive)) is None
    assert images.truncate_jpeg(whole[:-2], scan_start) is None
    assert images.truncate_jpeg(whole + b"trailer", scan_start) is None
    at = len(whole) * 3 // 4
    assert images.truncate_jpeg(whole[:at] + b"\xff\xc4" + whole[at + 2 :], scan_start) is None
    assert images.truncate_jpeg(whole[:at] + Random(1).randbytes(2048) + whole[at + 2048 :], scan_start) is None
