import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from lorgnette.data import ending


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_cut_of_a_whole_picture_is_suspected(picture: Callable[..., Path], suffix: str) -> None:
    whole = picture(f"a.{suffix}")
    content = whole.read_bytes()
    assert ending.complete(whole)
    cut = whole.with_name(f"cut.{suffix}")
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        assert not ending.complete(cut), length


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_preallocated_download_is_suspected(picture: Callable[..., Path], suffix: str) -> None:
    whole = picture(f"a.{suffix}", size=(200, 200))
    size = whole.stat().st_size
    whole.write_bytes(whole.read_bytes()[: size - 80].ljust(size, b"\0"))
    assert not ending.complete(whole)


@pytest.mark.parametrize("suffix", ["gif", "bmp", "tif"])
def test_formats_that_cannot_say_are_suspected(picture: Callable[..., Path], suffix: str) -> None:
    assert not ending.complete(picture(f"a.{suffix}"))


def test_junk_behind_a_png_does_not_matter_behind_a_jpeg_it_does(picture: Callable[..., Path]) -> None:
    for name, expected in (("a.png", True), ("a.jpg", False)):
        path = picture(name)
        path.write_bytes(path.read_bytes() + b"junk")
        assert ending.complete(path) is expected


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
            assert ending.late_metadata(file) is expected
            assert file.tell() == 5
