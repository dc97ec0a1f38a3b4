import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorgnette.report.thumbnail import MAX_SIDE, UnreadableImageError, encode_thumbnail, load_thumbnail

NASTY = Path(__file__).parents[3] / "shared/data/nasty"


def test_thumbnail_is_small_upright_and_rgb(tmp_path: Path) -> None:
    wide = Image.new("RGB", (900, 600), "navy")
    wide.paste("red", (0, 0, 450, 600))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by a quarter turn clockwise
    wide.save(tmp_path / "turned.jpg", exif=exif)
    thumbnail = load_thumbnail(tmp_path / "turned.jpg")
    assert thumbnail.size in ((299, 448), (298, 448))
    assert thumbnail.mode == "RGB"
    top, bottom = thumbnail.getpixel((150, 30)), thumbnail.getpixel((150, 420))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 200 > bottom[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_can_be_shown(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((20, 30), 0x8000, dtype=np.uint16))
    elif mode == "F":
        image = Image.fromarray(np.full((20, 30), 128.0, dtype=np.float32))
    else:
        image = Image.new("RGB", (30, 20), (128, 128, 128)).convert(mode)
    image.save(tmp_path / "image.tiff")
    pixels = np.asarray(load_thumbnail(tmp_path / "image.tiff"))
    assert pixels.shape == (20, 30, 3)
    assert 110 < pixels.mean() < 146


def test_transparency_is_shown_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(load_thumbnail(tmp_path / "clear.png")).min() == 255


def test_encoded_bytes_stay_within_the_limit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    large, small = encode_thumbnail(tmp_path / "noise.png", 10**6), encode_thumbnail(tmp_path / "noise.png", 30_000)
    assert max(Image.open(io.BytesIO(large)).size) == MAX_SIDE
    assert len(small) <= 30_000
    assert encode_thumbnail(tmp_path / "noise.png", 10)  # MIN_SIDE: still an image


def test_an_unreadable_image_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="not found"):
        load_thumbnail(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnreadableImageError, match="cannot identify"):
        load_thumbnail(tmp_path / "text.png")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_file_that_is_cut_off_is_shown_as_far_as_it_goes(tmp_path: Path, suffix: str) -> None:
    """Only where that is asked for, and only if something is to be seen."""
    pixels = np.random.default_rng(0).integers(100, 255, (300, 400, 3), dtype=np.uint8)
    path = tmp_path / f"whole.{suffix}"
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImageError, match="truncated"):
        load_thumbnail(path)
    shown = np.asarray(load_thumbnail(path, is_damaged=True))
    assert shown[:100].mean() > 150
    path.write_bytes(content[:150])
    with pytest.raises(UnreadableImageError):
        load_thumbnail(path, is_damaged=True)


@pytest.mark.skipif(not NASTY.is_dir(), reason="the collection of nasty images is missing")
def test_nasty_images_are_shown_or_refused() -> None:
    """No other exception, no warning."""
    with open(NASTY / "list.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) > 40
    shown = refused = 0
    for path in sorted(NASTY.rglob("*")):
        if path.is_file() and path.name != "list.csv":
            try:
                assert encode_thumbnail(path, 20_000)
                shown += 1
            except UnreadableImageError:
                refused += 1
    assert shown > 20
    assert refused > 5
