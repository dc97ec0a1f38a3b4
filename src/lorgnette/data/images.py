"""A picture's file → its size, or its pixels; whatever is wrong with it → an error that names it.

Knows nothing about examples, captions, or the sizes a model wants.
"""

import io
import math
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path

from PIL import ExifTags, Image, ImageFile, JpegImagePlugin

from lorgnette.data import truncation
from lorgnette.data.color import rgb
from lorgnette.data.decode_errors import unreadable
from lorgnette.errors import LorgnetteError

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".avifs", ".mpo", ".jp2", ".j2k", ".ico", ".ppm", ".pgm", ".pbm", ".qoi", ".heic", ".heif"),
    )
)
"""What counts as a picture in a folder. HEIC is among them so that it is named as unreadable, not passed over."""
MAX_ASPECT = 200
"""Longer side over shorter side; every Qwen-VL processor refuses a picture beyond it."""
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "QOI"),
    "HEIF",  # only where the user has registered a plugin for it
)
"""Named one by one: Pillow's other readers start programs (EPS, WMF) or take almost any bytes for a picture."""
_PLUGINS = ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Avif", "Jpeg2K", "Ico", "Ppm", "Qoi")
"""Pillow's modules that read them."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""The filter as `warnings` keeps it."""
_FILLED = 128
"""What libjpeg puts where a file has no more: every coefficient zero, which is grey."""
_lock = threading.Lock()


@cache
def formats() -> tuple[str, ...]:
    """Those of _FORMATS that this Pillow can open. Their plugins are loaded here, once: racing threads miss some. It is
    not left to Image.init, which loads all fifty."""
    with _lock:
        for plugin in _PLUGINS:
            import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def header(path: Path) -> tuple[int, int]:
    """(width, height) as seen, that is after the EXIF orientation, from the header alone."""
    with _opened(path) as image:
        return _shaped(path, _size(image))


def load(path: Path) -> Image.Image:
    """The first frame, upright, in 8-bit RGB on white, detached from its file."""
    with _opened(path) as image:
        _shaped(path, image.size)  # before the pixels: a refused picture costs no decode
        return _shown(path, image)


def glimpse(
    path: Path, *, least: int, most: int, upper: float = 1.0
) -> tuple[tuple[int, int], Image.Image | None, bool]:
    """`verified`, and the picture as `load` gives it but perhaps smaller, from one look at the file; is it whole?

    least: sides of so many pixels will do: a JPEG is decoded at a fraction of its size (its own 8×8 cosine blocks,
    scaled). most: beyond so many pixels a picture that can only be decoded whole is not shown but None. upper: so much
    of its height will do: where a JPEG's first bytes hold that much, what is below is grey, and the picture not whole.
    """
    with _opened(path) as image:
        size = _shaped(path, _size(image))
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            seen = _upper(path, image, least, upper) if upper < 1 else None
            if seen is not None:
                return size, seen, False
            image.draft(None, (least, least))  # None: in its own mode
            return size, _shown(path, image), True
        if size[0] * size[1] <= most:
            return size, _shown(path, image), True
    return verified(path), None, False


def verified(path: Path) -> tuple[int, int]:
    """`header`, and proof that the picture was not cut off.

    JPEG, PNG and WebP prove it by how they end (a few bytes); where they do not, and for every other format, the
    picture is decoded to find out. Damage in the middle of a file shows only when it is decoded.
    """
    with _opened(path) as image:
        file = image.fp  # let go of where EXIF stands behind a PNG's pixels, which are decoded for it
        size = _shaped(path, _size(image))
        whole = file is not None and truncation.complete(file)
    return size if whole else load(path).size


def _upper(path: Path, image: JpegImagePlugin.JpegImageFile, least: int, upper: float) -> Image.Image | None:
    """The picture of which only the upper part is decoded; None where that cannot be had, or not be told apart."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or _orientation(image) != 1 or image.fp is None:
        return None
    begun = image.fp.tell()  # Pillow reads a JPEG's header up to where its scan begins
    image.fp.seek(0)
    beginning = truncation.beginning(image.fp.read(), begun)
    if beginning is None:
        return None
    with Image.open(io.BytesIO(beginning), formats=("JPEG",)) as part:
        part.draft(None, (least, least))
        seen = _shown(path, part)
    blocks = 8 * max(layer[2] for layer in image.layer)  # pixels high, of those that are decoded together
    known = math.ceil(upper * seen.height) + math.ceil(blocks * seen.height / image.height)
    below = seen.crop((0, known, *seen.size)) if known < seen.height else None
    return seen if below is not None and set(below.getextrema()) != {(_FILLED, _FILLED)} else None


def _size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """As seen. Pillow gives a TIFF's size already turned, and turns its pixels when it loads them."""
    turned = _orientation(image) >= 5 and image.format != "TIFF"
    return (image.height, image.width) if turned else image.size


def _shown(path: Path, image: ImageFile.ImageFile) -> Image.Image:
    """The pixels of an open picture, which is still to be decoded."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    seen = rgb(image)
    if turn is not None:
        seen = seen.transpose(turn)
    elif seen is image:
        seen = image.copy()  # what is handed out must not hold on to the closed file
    _shaped(path, seen.size)
    seen.info.clear()
    return seen


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The picture open in Pillow, its file closed afterwards; all that goes wrong meanwhile is explained."""
    _must_be_a_file(path)
    _quieten()
    try:
        with path.open("rb") as file, Image.open(file, formats=formats()) as image:
            yield image
    except LorgnetteError:
        raise
    except Exception as error:  # decoders fed with broken bytes raise nearly anything: struct.error, KeyError, …
        raise unreadable(path, error) from error


def _must_be_a_file(path: Path) -> None:
    """Before opening: a pipe would block for ever, a device never end."""
    where = str(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LorgnetteError("picture is missing", where=where, remedy=_missing_remedy(path)) from error
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, a folder that may not be entered
        raise LorgnetteError(f"picture cannot be reached: {error}", where=where, remedy="correct the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise LorgnetteError("a folder stands where a picture should", where=where, remedy="name a file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise LorgnetteError("not an ordinary file", where=where, remedy="name a picture's file")
    if status.st_size == 0:
        raise LorgnetteError(
            "picture is empty (zero bytes)", where=where, remedy="get the file again, or remove its row"
        )


def _missing_remedy(path: Path) -> str:
    if "\\" in path.name:
        return "write / instead of \\ in the path"
    return "correct the path (relative paths start at the data file's folder), or say where pictures lie: images_from"


def _shaped(path: Path, size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if min(size) < 1:
        raise LorgnetteError(
            f"picture has no area ({width}×{height})", where=str(path), remedy="replace it, or remove its row"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise LorgnetteError(
            f"picture is too narrow: {width}×{height} is beyond {MAX_ASPECT}:1, the model's limit",
            where=str(path),
            remedy="crop it, or remove its row",
        )
    return width, height


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1–8; 1 where there is none or it cannot be read (viewers show such a picture as it lies).

    Read here and not by ImageOps.exif_transpose, which writes the EXIF back and fails on tags of a wrong type.
    """
    if image.format == "PNG" and image.fp is not None and not truncation.late_metadata(image.fp):
        # PngImageFile.getexif decodes the whole picture in case EXIF follows the pixels; here none does.
        read = Image.Image.getexif
    else:
        read = type(image).getexif
    try:
        value = read(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF raises nearly anything, and must not cost the picture
        return 1
    return value if value in _TURNS else 1


def _quieten() -> None:
    """Keep Pillow's own warnings (odd EXIF, many pixels) off the user's screen: what matters is raised.

    `warnings.catch_warnings` swaps the process's list of filters and is not safe in threads. One filter, which
    matches modules inside PIL only, is put at the front instead, and again whenever something has displaced it.
    """
    if not warnings.filters or warnings.filters[0] != _QUIET:
        with _lock:
            warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
