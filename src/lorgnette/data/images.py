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
from lorgnette.data.color import convert_to_rgb
from lorgnette.data.decode_errors import explain_decode_error
from lorgnette.errors import LorgnetteError

IMAGE_SUFFIXES = frozenset(
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
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PIL_WARNING_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""The filter as `warnings` keeps it."""
_MISSING_GRAY = 128
"""What libjpeg puts where a file has no more: every coefficient zero, which is grey."""
_lock = threading.Lock()


@cache
def load_formats() -> tuple[str, ...]:
    """Those of _FORMATS that this Pillow can open. Their plugins are loaded here, once: racing threads miss some. It is
    not left to Image.init, which loads all fifty."""
    with _lock:
        for plugin in _PLUGINS:
            import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def read_image_size(path: Path) -> tuple[int, int]:
    """(width, height) as seen, that is after the EXIF orientation, from the header alone."""
    with _open(path) as image:
        return _check_size(path, _read_oriented_size(image))


def load_image(path: Path) -> Image.Image:
    """The first frame, upright, in 8-bit RGB on white, detached from its file."""
    with _open(path) as image:
        _check_size(path, image.size)  # before the pixels: a refused picture costs no decode
        return _decode(path, image)


def decode_preview(
    path: Path, *, min_side: int, max_pixels: int, upper_fraction: float = 1.0
) -> tuple[tuple[int, int], Image.Image | None, bool]:
    """`verified`, and the picture as `load` gives it but perhaps smaller, from one look at the file; is it whole?

    least: sides of so many pixels will do: a JPEG is decoded at a fraction of its size (its own 8×8 cosine blocks,
    scaled). most: beyond so many pixels a picture that can only be decoded whole is not shown but None. upper: so much
    of its height will do: where a JPEG's first bytes hold that much, what is below is grey, and the picture not whole.
    """
    with _open(path) as image:
        size = _check_size(path, _read_oriented_size(image))
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            seen = _decode_upper(path, image, min_side, upper_fraction) if upper_fraction < 1 else None
            if seen is not None:
                return size, seen, False
            image.draft(None, (min_side, min_side))  # None: in its own mode
            return size, _decode(path, image), True
        if size[0] * size[1] <= max_pixels:
            return size, _decode(path, image), True
    return verify_image(path), None, False


def verify_image(path: Path) -> tuple[int, int]:
    """`header`, and proof that the picture was not cut off.

    JPEG, PNG and WebP prove it by how they end (a few bytes); where they do not, and for every other format, the
    picture is decoded to find out. Damage in the middle of a file shows only when it is decoded.
    """
    with _open(path) as image:
        file = image.fp  # let go of where EXIF stands behind a PNG's pixels, which are decoded for it
        size = _check_size(path, _read_oriented_size(image))
        whole = file is not None and truncation.is_complete(file)
    return size if whole else load_image(path).size


def _decode_upper(
    path: Path, image: JpegImagePlugin.JpegImageFile, min_side: int, upper_fraction: float
) -> Image.Image | None:
    """The picture of which only the upper part is decoded; None where that cannot be had, or not be told apart."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or _read_orientation(image) != 1 or image.fp is None:
        return None
    begun = image.fp.tell()  # Pillow reads a JPEG's header up to where its scan begins
    image.fp.seek(0)
    beginning = truncation.truncate_jpeg(image.fp.read(), begun)
    if beginning is None:
        return None
    with Image.open(io.BytesIO(beginning), formats=("JPEG",)) as part:
        part.draft(None, (min_side, min_side))
        seen = _decode(path, part)
    blocks = 8 * max(layer[2] for layer in image.layer)  # pixels high, of those that are decoded together
    known = math.ceil(upper_fraction * seen.height) + math.ceil(blocks * seen.height / image.height)
    below = seen.crop((0, known, *seen.size)) if known < seen.height else None
    return seen if below is not None and set(below.getextrema()) != {(_MISSING_GRAY, _MISSING_GRAY)} else None


def _read_oriented_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """As seen. Pillow gives a TIFF's size already turned, and turns its pixels when it loads them."""
    turned = _read_orientation(image) >= 5 and image.format != "TIFF"
    return (image.height, image.width) if turned else image.size


def _decode(path: Path, image: ImageFile.ImageFile) -> Image.Image:
    """The pixels of an open picture, which is still to be decoded."""
    image.load()
    turn = _TRANSPOSES.get(_read_orientation(image))
    seen = convert_to_rgb(image)
    if turn is not None:
        seen = seen.transpose(turn)
    elif seen is image:
        seen = image.copy()  # what is handed out must not hold on to the closed file
    _check_size(path, seen.size)
    seen.info.clear()
    return seen


@contextmanager
def _open(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The picture open in Pillow, its file closed afterwards; all that goes wrong meanwhile is explained."""
    _check_file(path)
    _silence_pil()
    try:
        with path.open("rb") as file, Image.open(file, formats=load_formats()) as image:
            yield image
    except LorgnetteError:
        raise
    except Exception as error:  # decoders fed with broken bytes raise nearly anything: struct.error, KeyError, …
        raise explain_decode_error(path, error) from error


def _check_file(path: Path) -> None:
    """Before opening: a pipe would block for ever, a device never end."""
    where = str(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LorgnetteError("picture is missing", where=where, hint=_suggest_path(path)) from error
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, a folder that may not be entered
        raise LorgnetteError(f"picture cannot be reached: {error}", where=where, hint="correct the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise LorgnetteError("a folder stands where a picture should", where=where, hint="name a file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise LorgnetteError("not an ordinary file", where=where, hint="name a picture's file")
    if status.st_size == 0:
        raise LorgnetteError("picture is empty (zero bytes)", where=where, hint="get the file again, or remove its row")


def _suggest_path(path: Path) -> str:
    if "\\" in path.name:
        return "write / instead of \\ in the path"
    return "correct the path (relative paths start at the data file's folder), or say where pictures lie: images_from"


def _check_size(path: Path, size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if min(size) < 1:
        raise LorgnetteError(
            f"picture has no area ({width}×{height})", where=str(path), hint="replace it, or remove its row"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise LorgnetteError(
            f"picture is too narrow: {width}×{height} is beyond {MAX_ASPECT}:1, the model's limit",
            where=str(path),
            hint="crop it, or remove its row",
        )
    return width, height


def _read_orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1–8; 1 where there is none or it cannot be read (viewers show such a picture as it lies).

    Read here and not by ImageOps.exif_transpose, which writes the EXIF back and fails on tags of a wrong type.
    """
    if image.format == "PNG" and image.fp is not None and not truncation.has_late_metadata(image.fp):
        # PngImageFile.getexif decodes the whole picture in case EXIF follows the pixels; here none does.
        read = Image.Image.getexif
    else:
        read = type(image).getexif
    try:
        value = read(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF raises nearly anything, and must not cost the picture
        return 1
    return value if value in _TRANSPOSES else 1


def _silence_pil() -> None:
    """Keep Pillow's own warnings (odd EXIF, many pixels) off the user's screen: what matters is raised.

    `warnings.catch_warnings` swaps the process's list of filters and is not safe in threads. One filter, which
    matches modules inside PIL only, is put at the front instead, and again whenever something has displaced it.
    """
    if not warnings.filters or warnings.filters[0] != _PIL_WARNING_FILTER:
        with _lock:
            warnings.filterwarnings("ignore", module=_PIL_WARNING_FILTER[3].pattern)
