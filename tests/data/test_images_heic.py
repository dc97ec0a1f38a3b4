"""HEIC images, which an extra reads. The tests make them with it, and skip where it is not installed."""

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorgnette import data
from lorgnette.data import images
from lorgnette.errors import LorgnetteError
from lorgnette.report.thumbnail import load_thumbnail
from lorgnette.types import Example


@pytest.fixture
def save_heic(tmp_path: Path) -> Callable[..., Path]:
    """A HEIC image, red on the left and blue on the right; orientation: of EXIF, as a phone writes it."""
    pytest.importorskip("pillow_heif", reason="HEIC needs the extra heic").register_heif_opener()

    def save(name: str = "IMG_1.HEIC", orientation: int = 1, size: tuple[int, int] = (64, 48)) -> Path:
        image = Image.new("RGB", size, (200, 0, 0))
        image.paste((0, 0, 200), (size[0] // 2, 0, *size))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / name, "HEIF", exif=exif.tobytes(), quality=95)
        return tmp_path / name

    return save


def find_red_corners(image: Image.Image) -> set[tuple[bool, bool]]:
    """(is right, is lower) of the corners that are red."""
    right, lower = image.width - 3, image.height - 3
    pixels = {(x, y): image.getpixel((right * x + 1, lower * y + 1)) for x in (False, True) for y in (False, True)}
    return {corner for corner, (red, _, blue) in pixels.items() if red > blue}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("orientation", "size", "is_red"),
    [
        (1, (64, 48), {(False, False), (False, True)}),
        (3, (64, 48), {(True, False), (True, True)}),
        (6, (48, 64), {(False, False), (True, False)}),
        (8, (48, 64), {(False, True), (True, True)}),
    ],
)
def test_a_phones_image_is_upright(
    save_heic: Callable[..., Path], orientation: int, size: tuple[int, int], is_red: set[tuple[bool, bool]]
) -> None:
    path = save_heic(orientation=orientation)
    assert data.read_image_size(path) == data.verify_image(path) == size
    pixels, (preview_size, preview, _) = data.load_image(path), images.decode_preview(path, min_side=8, max_pixels=9999)
    assert (pixels.size, pixels.mode, preview_size) == (size, "RGB", size)
    assert find_red_corners(pixels) == is_red
    assert preview is not None
    assert find_red_corners(preview) == is_red
    assert find_red_corners(load_thumbnail(path)) == is_red


def test_its_size_and_its_end_are_read_without_decoding(
    save_heic: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_heic()
    monkeypatch.setattr(images, "_decode", None)
    assert data.verify_image(path) == (64, 48)
    monkeypatch.undo()
    content = path.read_bytes()
    for damaged in (content[:-40], content[:-100] + bytes(100)):
        path.write_bytes(damaged)
        with path.open("rb") as file:
            assert not images.is_complete(file)
    path.write_bytes(content[:200])
    with pytest.raises(LorgnetteError, match=r"cannot be decoded|damaged"):
        data.verify_image(path)


def test_a_data_set_of_them_is_checked(save_heic: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.hif"):
        save_heic(name)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    result = data.scan(data.read(tmp_path), with_signatures=True)
    assert not result.problems
    assert {info.size for info in result.image_infos.values()} == {(64, 48)}
    assert all(info.signature for info in result.image_infos.values())
    assert len(set(data.map_identical_files(result.image_infos, result.image_infos).values())) == 1


def test_it_may_be_inside_another_file(save_heic: Callable[..., Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(save_heic(), "IMG_1.HEIC")
        archive.writestr("a.csv", "image,text\nIMG_1.HEIC,one\n")
    [row] = data.read(tmp_path / "a.zip")
    assert isinstance(row, Example)
    assert data.load_image(row.images[0].path).size == (64, 48)


@pytest.fixture
def without_reader(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if the extra was not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    images.load_heic_reader.cache_clear()
    yield
    images.load_heic_reader.cache_clear()


def test_without_the_extra_one_line_says_what_to_install(without_reader: None, tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    rows = "".join(f"IMG_{number}.HEIC,a cat\n" for number in range(30))
    (tmp_path / "captions.csv").write_text(f"image,text\n{rows}")
    result = data.scan(data.read(tmp_path / "captions.csv"))
    [line] = data.format_problems(result.problems)
    assert line.startswith("30 rows: a HEIC image, which needs a reader; pip install pillow-heif, or convert it to J")


def test_only_a_heic_image_loads_the_reader(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="HEIC needs the extra heic")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    code = (
        "import sys, pathlib\nfrom lorgnette import data\n"
        "print(data.load_image(pathlib.Path('a.png')).size)\n"
        "from lorgnette.errors import LorgnetteError\n"
        "try: data.load_image(pathlib.Path('b.jpg'))\n"
        "except LorgnetteError: pass\n"
        "print('pillow_heif' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split("\n")[:2] == ["(8, 8)", "False"]


def test_the_reader_is_found_by_content(save_heic: Callable[..., Path]) -> None:
    """Phones and chats rename files."""
    path = save_heic("IMG_1.jpg")
    assert data.verify_image(path) == (64, 48)
    assert images.open_pillow(io.BytesIO(path.read_bytes())).format == "HEIF"
