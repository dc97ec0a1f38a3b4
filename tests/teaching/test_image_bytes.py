"""Images for the page: the file where browsers show it, else a JPEG; large ones are scaled down."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.teaching import image_bytes
from lorgnette.teaching.image_bytes import MAX_SIDE, THUMBNAIL_SIDE, read_image_bytes


def save(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp"])
def test_a_file_that_browsers_show_is_sent_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"image.{suffix}")
    sent = read_image_bytes(path)
    assert sent.content == path.read_bytes()
    assert sent.media_type == f"image/{'jpeg' if suffix == 'jpg' else suffix}"


def test_the_bytes_decide_and_not_the_name(tmp_path: Path) -> None:
    path = save(tmp_path / "image.jpg", format="TIFF")
    assert read_image_bytes(path).content.startswith(b"\xff\xd8")  # TIFF is converted
    (tmp_path / "page.png").write_text("<script>alert(1)</script>")
    with pytest.raises(LorgnetteError, match="not an image"):
        read_image_bytes(tmp_path / "page.png")


def test_large_images_are_scaled_down_and_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = save(tmp_path / "photo.jpg", (2 * MAX_SIDE, 100), exif=exif)
    with PIL.Image.open(io.BytesIO(read_image_bytes(path).content)) as image:
        assert image.size == (50, MAX_SIDE)
        assert 0x0112 not in image.getexif()
    small = save(tmp_path / "small.png", (400, 300))
    with PIL.Image.open(io.BytesIO(read_image_bytes(small, THUMBNAIL_SIDE).content)) as image:
        assert image.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE * 3 // 4)
    monkeypatch.setattr(image_bytes, "MAX_FILE_BYTES", 1000)
    sent = read_image_bytes(small)
    assert (sent.media_type, sent.content[:2]) == ("image/jpeg", b"\xff\xd8")


def test_a_damaged_image_is_an_error_where_it_is_decoded(tmp_path: Path) -> None:
    path = save(tmp_path / "torn.tif", (400, 300))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(LorgnetteError):
        read_image_bytes(path)
    with pytest.raises(LorgnetteError, match="missing"):
        read_image_bytes(tmp_path / "gone.png")
