import csv
import math
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from lorgnette.data import images
from lorgnette.data.images import (
    MAX_PIXELS,
    DecodeBudget,
    check_aspect,
    decode_preview,
    load_formats,
    load_heic_reader,
    load_image,
    load_resized,
    read_image_size,
    verify_image,
)
from lorgnette.errors import LorgnetteError


def preview_size(path: Path) -> tuple[int, int]:
    return decode_preview(path, min_side=32, max_pixels=1 << 25)[0]


OPENERS: list[Callable[[Path], object]] = [read_image_size, load_image, verify_image, preview_size]


def draw_quarters() -> Image.Image:
    """48×32, its quarters red, green, blue and white, so that every orientation differs."""
    values = np.zeros((32, 48, 3), dtype=np.uint8)
    values[:16, :24], values[:16, 24:] = (255, 0, 0), (0, 255, 0)
    values[16:, :24], values[16:, 24:] = (0, 0, 255), (255, 255, 255)
    return Image.fromarray(values)


def save_oriented(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw_quarters().save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg", "avif"])
@pytest.mark.parametrize("orientation", range(9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = save_oriented(tmp_path / f"a.{suffix}", orientation)
    upright = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = draw_quarters().transpose(upright[orientation]) if orientation in upright else draw_quarters()
    image = load_image(path)
    assert image.size == expected.size == read_image_size(path) == verify_image(path) == preview_size(path)
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int))
    assert np.median(difference) <= 4


def test_exif_orientation_behind_a_pngs_pixels_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    draw_quarters().save(path)
    body, whole = exif.tobytes()[6:], path.read_bytes()
    chunk = len(body).to_bytes(4, "big") + b"eXIf" + body + zlib.crc32(b"eXIf" + body).to_bytes(4, "big")
    path.write_bytes(whole[:-12] + chunk + whole[-12:])
    assert read_image_size(path) == load_image(path).size == (32, 48)


def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    draw_quarters().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xfe" * 50)
    assert read_image_size(tmp_path / "a.jpg") == load_image(tmp_path / "a.jpg").size == (48, 32)


def test_the_image_is_detached_from_its_file(make_image: Callable[..., Path]) -> None:
    path = make_image("a.png", color=(1, 2, 3))
    image = load_image(path)
    path.unlink()
    assert type(image) is Image.Image
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert image.info == {}


def test_the_first_frame_is_loaded(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    for suffix in ("gif", "png", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert load_image(path).getpixel((0, 0)) == pytest.approx((250, 0, 0), abs=8)


@pytest.mark.parametrize("open_image", OPENERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "missing"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: path.touch(), "zero bytes"),
        (lambda path: path.write_text("<html>404</html>"), "web page"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"), "damaged"),
        (os.mkfifo, "not an ordinary file"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
    ],
    ids=["missing", "folder", "empty", "page", "header", "pipe", "program"],
)
def test_problems_in_the_header_are_named(
    tmp_path: Path, open_image: Callable[[Path], object], make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(LorgnetteError) as caught:
        open_image(path)
    assert message in caught.value.message
    assert caught.value.where == str(path)
    assert caught.value.hint


@pytest.mark.parametrize("open_image", OPENERS)
def test_a_missing_image_names_the_one_that_is_there(tmp_path: Path, open_image: Callable[[Path], object]) -> None:
    (tmp_path / "a.JPG").touch()
    with pytest.raises(LorgnetteError, match="is missing, but one is there") as caught:
        open_image(tmp_path / "A.jpg")
    assert caught.value.where == f"{tmp_path / 'A.jpg'}; there: {tmp_path / 'a.JPG'}"


@pytest.mark.parametrize("size", [(2010, 10), (10, 2010)])
def test_an_aspect_ratio_of_200_is_the_limit_of_an_image_that_keeps_its_shape(size: tuple[int, int]) -> None:
    check_aspect((2000, 10))
    check_aspect((10, 2000))
    with pytest.raises(LorgnetteError, match=f"too narrow: {size[0]}×{size[1]}"):
        check_aspect(size)


@pytest.mark.parametrize("open_image", OPENERS)
def test_impossible_file_names_are_refused(open_image: Callable[[Path], object]) -> None:
    for name in ("nul\0", "x" * 5000, "a.jpg/b.jpg"):
        with pytest.raises(LorgnetteError):
            open_image(Path(name))


def test_a_windows_path_has_its_own_hint(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError) as caught:
        read_image_size(tmp_path / "images\\a.jpg")
    assert "/ instead of \\" in (caught.value.hint or "")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_verify_image_never_passes_an_image_that_cannot_be_loaded(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(whole)
    content = whole.read_bytes()
    assert verify_image(whole) == (60, 40)
    for length in range(1, len(content), max(1, len(content) // 200)):
        cut.write_bytes(content[:length])
        outcomes = []
        for open_image in (verify_image, load_image, preview_size):
            try:
                open_image(cut)
                outcomes.append("loaded")
            except LorgnetteError:
                outcomes.append("refused")
        assert outcomes[0] == outcomes[1] == outcomes[2], length


@pytest.mark.parametrize("is_turned", [False, True])
def test_the_preview_of_a_jpeg_is_a_fraction_of_it(tmp_path: Path, is_turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if is_turned else 1
    path = tmp_path / "a.jpg"
    Image.linear_gradient("L").resize((640, 480)).save(path, exif=exif)
    size, preview, _ = decode_preview(path, min_side=32, max_pixels=10)
    assert size == ((480, 640) if is_turned else (640, 480))
    assert preview is not None
    assert preview.size == (size[0] // 8, size[1] // 8)
    assert preview.mode == "RGB"


def draw_noise(size: tuple[int, int] = (640, 480), mode: str = "RGB") -> Image.Image:
    cells = np.random.default_rng(5).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(640, 480), (427, 640), (161, 121), (3000, 2000)])
def test_the_upper_part_of_a_jpeg_preview_is_exact(
    tmp_path: Path, size: tuple[int, int], subsampling: int, mode: str
) -> None:
    path = tmp_path / "a.jpg"
    draw_noise(size, mode).save(path, quality=90, subsampling=subsampling)
    (part_size, part, is_whole), (_, full, is_full) = (
        decode_preview(path, min_side=32, max_pixels=10, upper_fraction=fraction) for fraction in (0.2, 1.0)
    )
    assert part is not None
    assert full is not None
    assert (part_size, is_whole, is_full) == (size, False, True)
    assert part.size == full.size
    upper = (0, 0, full.width, math.ceil(full.height * 0.2))
    assert part.crop(upper).tobytes() == full.crop(upper).tobytes()
    assert part.tobytes() != full.tobytes()


@pytest.mark.parametrize("kind", ["turned", "progressive", "cmyk", "heavy top", "gray below", "no end"])
def test_a_jpeg_whose_upper_part_is_not_proven_is_decoded_whole(tmp_path: Path, kind: str) -> None:
    path, exif, image = tmp_path / "a.jpg", Image.Exif(), draw_noise(mode="CMYK" if kind == "cmyk" else "RGB")
    exif[0x0112] = 3 if kind == "turned" else 1
    if kind == "heavy top":  # with most of the bytes
        image = Image.new("RGB", (640, 480), "navy")
        image.paste(Image.frombytes("RGB", (640, 140), Random(1).randbytes(640 * 140 * 3)))
    if kind == "gray below":
        image.paste((128, 128, 128), (0, 150, 640, 480))
    image.save(path, exif=exif, progressive=kind == "progressive", quality=90)
    if kind == "no end":
        path.write_bytes(path.read_bytes() + b"a phone's trailer")
    (_, preview, is_whole), (_, full, _) = (
        decode_preview(path, min_side=32, max_pixels=10, upper_fraction=fraction) for fraction in (0.28, 1.0)
    )
    assert is_whole
    assert preview is not None
    assert full is not None
    assert preview.tobytes() == full.tobytes()


def test_a_huge_image_that_is_no_jpeg_gets_no_preview(
    make_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_image("a.png", size=(40, 30))
    assert decode_preview(path, min_side=8, max_pixels=1200)[1] is not None
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda image: pytest.fail("decoded"))
    assert decode_preview(path, min_side=8, max_pixels=1199) == ((40, 30), None, False)


def test_verify_image_allows_trailing_bytes_in_a_jpeg(make_image: Callable[..., Path]) -> None:
    path = make_image("a.jpg")
    path.write_bytes(path.read_bytes() + b"a phone's trailer")
    assert verify_image(path) == (32, 24)


def test_an_image_with_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # beyond it Pillow warns, beyond twice it refuses
    assert read_image_size(tmp_path / "a.png") == (100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(LorgnetteError, match="too large"):
        read_image_size(tmp_path / "a.png")


@pytest.mark.parametrize("open_image", OPENERS)
def test_an_image_beyond_our_own_limit_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_image: Callable[[Path], object]
) -> None:
    Image.new("RGBA", (100, 101)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()  # metadata behind the pixels, as some editors write it
    chunk = struct.pack(">I", 3) + b"tEXta\0b" + struct.pack(">I", zlib.crc32(b"tEXta\0b"))
    (tmp_path / "late.png").write_bytes(content[:-12] + chunk + content[-12:])
    monkeypatch.setattr("lorgnette.data.images.MAX_PIXELS", 10_000)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda image: pytest.fail("decoded"))
    for name in ("a.png", "late.png"):
        with pytest.raises(LorgnetteError, match="too large: 100×101 pixels, more than 10,000"):
            open_image(tmp_path / name)


def test_the_limit_is_below_pillows_and_above_what_phones_take() -> None:
    assert 12_000 * 9_000 < MAX_PIXELS < 13_300 * 13_300 < 2 * (Image.MAX_IMAGE_PIXELS or 0)


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the whole limit at once: two of 60 % wait for each other, three of 30 % do not."""
    for name, size in (("large", (60, 10)), ("small", (30, 10))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(images, "decode_budget", DecodeBudget(1000))
    lock, together, most = threading.Lock(), 0, 0
    barrier = threading.Barrier(3, timeout=20)

    def resize(image: Image.Image) -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        if image.width == 30:
            barrier.wait()  # all three are decoded
        else:
            time.sleep(0.01)
        with lock:
            together -= 1

    for name, count, expected in (("large", 4, 1), ("small", 3, 3)):
        most = 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda path: load_resized(path, resize), [tmp_path / f"{name}.png"] * count))
        assert most == expected
    with pytest.raises(LorgnetteError), images.decode_budget.reserve((2000, 2000)):  # more than all of it
        raise LorgnetteError("x")
    with images.decode_budget.reserve((100, 10)):
        pass


def test_memory_of_a_large_image_goes_back_to_the_system() -> None:
    """What the C library keeps for a thread has less than 32 MB (mallopt, M_MMAP_THRESHOLD)."""
    load_formats()
    assert Image.core.get_block_size() > 32 << 20


def test_pillows_warnings_are_hidden_in_threads_and_no_others(shared: Path) -> None:
    path = shared / "nasty" / "hopper_bad_exif.jpg"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(read_image_size, [path] * 200)) == {(500, 500)}
        assert caught == []
        warnings.warn("ours", UserWarning, stacklevel=1)
        assert len(caught) == 1


def test_every_nasty_file_is_loaded_or_its_problem_named(shared: Path) -> None:
    with (shared / "nasty" / "list.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 45
    for row in listed:
        path = shared / "nasty" / row["file"]
        if row["load"] == "ok" or (path.suffix in (".heif", ".heic") and path.stat().st_size and load_heic_reader()):
            image = load_image(path)
            assert image.mode == "RGB"
            assert "x".join(map(str, image.size)) == row["rgb_after_transpose"] or row["load"] != "ok"
            assert read_image_size(path) == verify_image(path) == preview_size(path) == image.size
            continue
        for open_image in (load_image, verify_image, preview_size):
            with pytest.raises(LorgnetteError) as caught:
                open_image(path)
            assert caught.value.where == str(path)
            assert caught.value.hint


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ("C:\\Users\\a\\red.png", "its path is of another computer", "--images-from FOLDER"),
        ("C:/Users/a/red.png", "its path is of another computer", "--images-from FOLDER"),
        ("blue.png", "one is in a folder beside it", "--images-from photos$"),
        ("red", "one is there with an ending .*there: red.png", "write the ending"),
        ("cafe\u0301.png", "in another Unicode form", "copy the name from the folder"),
    ],
)
def test_a_missing_image_gets_the_remedy_that_helps(
    written: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("photos/blue.png", "red.png", "caf\u00e9.png"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(LorgnetteError, match=f"image is missing.*{message}.*{hint}"):
        verify_image(tmp_path / written)
