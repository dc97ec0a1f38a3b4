import csv
import math
import os
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from lorgnette.data.images import decode_preview, load_image, read_image_size, verify_image
from lorgnette.errors import LorgnetteError

MANY = 1 << 25


def glimpsed(path: Path) -> tuple[int, int]:
    return decode_preview(path, min_side=32, max_pixels=MANY)[0]


LOOKS: list[Callable[[Path], object]] = [read_image_size, load_image, verify_image, glimpsed]


def quartered() -> Image.Image:
    """48×32, its corners red, green, blue and white, so that every turn shows."""
    values = np.zeros((32, 48, 3), dtype=np.uint8)
    values[:16, :24], values[:16, 24:] = (255, 0, 0), (0, 255, 0)
    values[16:, :24], values[16:, 24:] = (0, 0, 255), (255, 255, 255)
    return Image.fromarray(values)


def oriented(path: Path, turn: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = turn
    quartered().save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg", "avif"])
@pytest.mark.parametrize("turn", range(9))
def test_seen_as_the_camera_held_it(tmp_path: Path, suffix: str, turn: int) -> None:
    path = oriented(tmp_path / f"a.{suffix}", turn)
    upright = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = quartered().transpose(upright[turn]) if turn in upright else quartered()
    seen = load_image(path)
    assert seen.size == expected.size == read_image_size(path) == verify_image(path) == glimpsed(path)
    difference = np.abs(np.asarray(seen, dtype=int) - np.asarray(expected, dtype=int))
    assert np.median(difference) <= 4


def test_orientation_behind_a_pngs_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    quartered().save(path)
    body, whole = exif.tobytes()[6:], path.read_bytes()
    chunk = len(body).to_bytes(4, "big") + b"eXIf" + body + zlib.crc32(b"eXIf" + body).to_bytes(4, "big")
    path.write_bytes(whole[:-12] + chunk + whole[-12:])
    assert read_image_size(path) == load_image(path).size == (32, 48)


def test_exif_that_makes_no_sense_does_not_cost_the_picture(tmp_path: Path) -> None:
    quartered().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xfe" * 50)
    assert read_image_size(tmp_path / "a.jpg") == load_image(tmp_path / "a.jpg").size == (48, 32)


def test_pixels_are_detached_from_the_file(picture: Callable[..., Path]) -> None:
    path = picture("a.png", colour=(1, 2, 3))
    image = load_image(path)
    path.unlink()
    assert type(image) is Image.Image
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert image.info == {}


def test_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for suffix in ("gif", "png", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert load_image(path).getpixel((0, 0)) == pytest.approx((250, 0, 0), abs=8)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "missing"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: path.touch(), "zero bytes"),
        (lambda path: path.write_text("<html>404</html>"), "web page"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"), "damaged"),
        (os.mkfifo, "not an ordinary file"),
        (lambda path: Image.new("1", (2010, 10)).save(path), "too narrow: 2010×10"),
        (lambda path: Image.new("1", (10, 2010)).save(path), "too narrow: 10×2010"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a picture"),
    ],
    ids=["missing", "folder", "empty", "page", "header", "pipe", "wide", "high", "program"],
)
def test_what_the_header_shows(
    tmp_path: Path, look: Callable[[Path], object], make: Callable[[Path], object], what: str
) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(LorgnetteError) as caught:
        look(path)
    assert what in caught.value.message
    assert caught.value.where == str(path)
    assert caught.value.hint


def test_the_widest_picture_allowed(tmp_path: Path) -> None:
    Image.new("1", (2000, 10)).save(tmp_path / "a.png")
    assert read_image_size(tmp_path / "a.png") == (2000, 10)


@pytest.mark.parametrize("look", LOOKS)
def test_names_no_file_can_have(look: Callable[[Path], object]) -> None:
    for name in ("nul\0", "x" * 5000, "a.jpg/b.jpg"):
        with pytest.raises(LorgnetteError):
            look(Path(name))


def test_a_windows_path(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError) as caught:
        read_image_size(tmp_path / "images\\a.jpg")
    assert "/ instead of \\" in (caught.value.hint or "")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_verified_never_passes_a_picture_that_cannot_be_loaded(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(whole)
    content = whole.read_bytes()
    assert verify_image(whole) == (60, 40)
    for length in range(1, len(content), max(1, len(content) // 200)):
        cut.write_bytes(content[:length])
        outcomes = []
        for look in (verify_image, load_image, glimpsed):
            try:
                look(cut)
                outcomes.append("fine")
            except LorgnetteError:
                outcomes.append("refused")
        assert outcomes[0] == outcomes[1] == outcomes[2], length


@pytest.mark.parametrize("turned", [False, True])
def test_a_glimpse_of_a_jpeg_is_a_fraction_of_it(tmp_path: Path, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    path = tmp_path / "a.jpg"
    Image.linear_gradient("L").resize((640, 480)).save(path, exif=exif)
    size, seen, _ = decode_preview(path, min_side=32, max_pixels=10)
    assert size == ((480, 640) if turned else (640, 480))
    assert seen is not None
    assert seen.size == (size[0] // 8, size[1] // 8)
    assert seen.mode == "RGB"


def busy(size: tuple[int, int] = (640, 480), mode: str = "RGB") -> Image.Image:
    cells = np.random.default_rng(5).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(640, 480), (427, 640), (161, 121), (3000, 2000)])
def test_of_a_jpeg_the_upper_part_is_seen_as_in_the_whole(
    tmp_path: Path, size: tuple[int, int], subsampling: int, mode: str
) -> None:
    path = tmp_path / "a.jpg"
    busy(size, mode).save(path, quality=90, subsampling=subsampling)
    (told, part, whole), (_, seen, all_of_it) = (
        decode_preview(path, min_side=32, max_pixels=10, upper_fraction=each) for each in (0.2, 1.0)
    )
    assert part is not None
    assert seen is not None
    assert (told, whole, all_of_it) == (size, False, True)
    assert part.size == seen.size
    upper = (0, 0, seen.width, math.ceil(seen.height * 0.2))
    assert part.crop(upper).tobytes() == seen.crop(upper).tobytes()
    assert part.tobytes() != seen.tobytes()


@pytest.mark.parametrize("how", ["turned", "progressive", "cmyk", "heavy top", "grey below", "no end"])
def test_what_has_no_upper_part_to_be_told_apart_is_seen_whole(tmp_path: Path, how: str) -> None:
    path, exif, picture = tmp_path / "a.jpg", Image.Exif(), busy(mode="CMYK" if how == "cmyk" else "RGB")
    exif[0x0112] = 3 if how == "turned" else 1
    if how == "heavy top":  # has most of the bytes
        picture = Image.new("RGB", (640, 480), "navy")
        picture.paste(Image.frombytes("RGB", (640, 140), Random(1).randbytes(640 * 140 * 3)))
    if how == "grey below":
        picture.paste((128, 128, 128), (0, 150, 640, 480))
    picture.save(path, exif=exif, progressive=how == "progressive", quality=90)
    if how == "no end":
        path.write_bytes(path.read_bytes() + b"a phone's trailer")
    (_, seen, whole), (_, same, _) = (
        decode_preview(path, min_side=32, max_pixels=10, upper_fraction=each) for each in (0.28, 1.0)
    )
    assert whole
    assert seen is not None
    assert same is not None
    assert seen.tobytes() == same.tobytes()


def test_a_glimpse_does_not_decode_what_is_huge_and_can_only_be_had_whole(
    picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture("a.png", size=(40, 30))
    assert decode_preview(path, min_side=8, max_pixels=1200)[1] is not None
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda image: pytest.fail("decoded"))
    assert decode_preview(path, min_side=8, max_pixels=1199) == ((40, 30), None, False)


def test_verified_passes_junk_behind_a_jpeg(picture: Callable[..., Path]) -> None:
    path = picture("a.jpg")
    path.write_bytes(path.read_bytes() + b"a phone's trailer")
    assert verify_image(path) == (32, 24)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # beyond it Pillow warns, beyond twice it refuses
    assert read_image_size(tmp_path / "a.png") == (100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(LorgnetteError, match="too large"):
        read_image_size(tmp_path / "a.png")


def test_no_warning_escapes_in_threads_and_no_other_is_silenced(shared: Path) -> None:
    path = shared / "nasty" / "hopper_bad_exif.jpg"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(read_image_size, [path] * 200)) == {(500, 500)}
        assert caught == []
        warnings.warn("ours", UserWarning, stacklevel=1)
        assert len(caught) == 1


def test_every_nasty_file_is_loaded_or_named(shared: Path) -> None:
    with (shared / "nasty" / "list.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 45
    for row in listed:
        path = shared / "nasty" / row["file"]
        if row["load"] == "ok":
            image = load_image(path)
            assert image.mode == "RGB"
            assert "x".join(map(str, image.size)) == row["rgb_after_transpose"]
            assert read_image_size(path) == verify_image(path) == glimpsed(path) == image.size
            continue
        for look in (load_image, verify_image, glimpsed):
            with pytest.raises(LorgnetteError) as caught:
                look(path)
            assert caught.value.where == str(path)
            assert caught.value.hint
