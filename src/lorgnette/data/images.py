"""Opens an image file: its size, its pixels, or an error that says what is wrong with it.

Parts: sizes and pixels (EXIF orientation applied) · color modes → 8-bit RGB · proof that a file is not cut off ·
an explanation for whatever Pillow raises. Knows nothing about examples, captions, or the sizes that a model needs.
"""

import io
import math
import os
import re
import stat
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from lorgnette.errors import LorgnetteError
from lorgnette.io import image_signature
from lorgnette.io.paths import find_same_name, list_folders
from lorgnette.io.shell import quote_word

_RARE_SUFFIXES = {".jpe", ".jfif", ".apng", ".dib", ".avifs", ".mpo", ".j2k", ".pgm", ".pbm", ".qoi", ".heif", ".hif"}
IMAGE_SUFFIXES = image_signature.IMAGE_SUFFIXES | _RARE_SUFFIXES
"""Suffixes of the files in a folder that count as images. HEIC is one of them also without its reader: it is then
reported, not ignored."""
MAX_ASPECT = 200
"""Largest ratio of the longer to the shorter side of an image that keeps its shape; every Qwen-VL processor refuses
more."""
MAX_PIXELS = 1 << 27
"""Of one image, and of all images that are decoded at once: 134 million, or 1 GB at 8 bytes per pixel. Phones take
images of 108 million."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "QOI")
"""An allow list: Pillow's other readers start programs (EPS, WMF) or accept almost any bytes as an image."""
_PLUGINS = ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Avif", "Jpeg2K", "Ico", "Ppm", "Qoi")
"""Pillow's modules that read _FORMATS."""
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_TRANSPOSES = {orientation: Image.Transpose[turn] for orientation, turn in enumerate(_TURNS, start=2)}
"""EXIF orientation → the transpose that turns the image upright."""
_PIL_WARNING_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""The filter in the form in which `warnings` stores it."""
_DRIVE = re.compile(r"(?:^|/)[A-Za-z]:[\\/]")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_BAND_PIXELS = 1 << 22
"""Pixels of a band. Colors are converted band by band: a copy of a whole large image takes a gigabyte."""
_BLOCK_BYTES = 1 << 26
"""Pillow's unit of memory. Above 32 MB the C library gives it back to the system at once; smaller ones stay with the
thread that decoded, 500 MB each after a large image."""
_lock = threading.Lock()
T = TypeVar("T")


@cache
def load_formats() -> tuple[str, ...]:
    """The formats in _FORMATS that this Pillow can open.

    Loads their plugins here, once: threads that race to load them miss some, and Image.init would load all fifty.
    """
    with _lock:
        for plugin in _PLUGINS:
            import_module(f"PIL.{plugin}ImagePlugin")
        Image.core.set_block_size(_BLOCK_BYTES)  # type: ignore[attr-defined]
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def load_heic_reader() -> bool:
    """Register the reader of HEIC images with Pillow; False if the extra `heic` is not installed."""
    with _lock, suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    return "HEIF" in Image.OPEN


def open_pillow(file: IO[bytes]) -> ImageFile.ImageFile:
    """The image opened by Pillow, in one of our formats. The first HEIC image loads its reader."""
    try:
        return Image.open(file, formats=load_formats())
    except UnidentifiedImageError:
        file.seek(0)
        if image_signature.detect_image_format(file.read(image_signature.HEAD_BYTES)) != "heic":
            raise
        if not load_heic_reader():
            raise
        file.seek(0)
        return Image.open(file, formats=("HEIF",))


class ImageTooLargeError(LorgnetteError):
    """An image has more pixels than are decoded."""


def read_image_size(path: Path, *, max_pixels: int | None = None) -> tuple[int, int]:
    """(width, height) after EXIF orientation, from the header alone.

    max_pixels: default MAX_PIXELS. Raises LorgnetteError if the file is no image or cannot be opened,
    ImageTooLargeError if it has more pixels.
    """
    with _open(path, max_pixels) as image:
        return _read_oriented_size(image)


def is_turned(path: Path) -> bool:
    """Whether EXIF orientation swaps width and height."""
    with _open(path) as image:
        return _read_orientation(image) >= 5


def is_deep(path: Path) -> bool:
    """Whether the file has values of more than 8 bits, which are scaled."""
    with _open(path) as image:
        return image.mode in _DEEP_MODES


def check_aspect(size: tuple[int, int], where: str | None = None) -> None:
    """Raise LorgnetteError for an aspect ratio above MAX_ASPECT, for an image that keeps its shape."""
    if max(size) > MAX_ASPECT * min(size):
        message = f"image is too narrow: {size[0]}×{size[1]} is beyond {MAX_ASPECT}:1, the model's limit"
        hint = "crop it, remove its row, or give all images one size (image_size=280)"
        raise LorgnetteError(message, where=where, hint=hint)


def load_image(path: Path) -> Image.Image:
    """The first frame as 8-bit RGB, upright, transparency on white, detached from its file."""
    return load_resized(path, lambda image: image)


def load_resized(path: Path, resize: Callable[[Image.Image], T]) -> T:
    """`resize(load_image(path))`, while other threads decode no more than MAX_PIXELS pixels together with this one."""
    with _open(path) as image:
        with decode_budget.reserve(image.size):
            rgb = _decode(path, image)
            image.close()
            result = resize(rgb)
            del rgb  # all of its memory is free before another large image is decoded
        return result


class DecodeBudget:
    """Limits the pixels that all threads decode at once: large images are decoded one at a time."""

    def __init__(self, num_pixels: int) -> None:
        self._capacity = self._free = num_pixels
        self._condition = threading.Condition()

    @contextmanager
    def reserve(self, size: tuple[int, int]) -> Iterator[None]:
        """Wait until an image of this size may be decoded. One beyond the whole budget waits until it is alone."""
        num_pixels = min(size[0] * size[1], self._capacity)
        with self._condition:
            self._condition.wait_for(lambda: self._free >= num_pixels)
            self._free -= num_pixels
        try:
            yield
        finally:
            with self._condition:
                self._free += num_pixels
                self._condition.notify_all()


decode_budget = DecodeBudget(MAX_PIXELS)


def decode_preview(
    path: Path, *, min_side: int, max_pixels: int, upper_fraction: float = 1.0
) -> tuple[tuple[int, int], Image.Image | None, bool]:
    """(size, preview, is_whole): `verify_image` and a cheap, possibly smaller `load_image` from one read of the file.

    min_side: the preview's sides have at least this many pixels. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size.
    max_pixels: a larger image in another format, which can only be decoded in full, gets None as its preview.
    upper_fraction: the part of the height that must be correct. If a JPEG's first bytes hold it, the rest of the
    preview is gray and is_whole is False.
    """
    with _open(path) as image:
        size = _read_oriented_size(image)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            if upper_fraction < 1 and (upper := _decode_upper(path, image, min_side, upper_fraction)):
                return size, upper, False
            image.draft(None, (min_side, min_side))  # None: keep the color mode
            is_progressive = image.info.get("progressive")  # libjpeg then holds all of it
            with decode_budget.reserve(size if is_progressive else image.size):
                return size, _decode(path, image), True
        if size[0] * size[1] <= max_pixels:
            with decode_budget.reserve(size):
                return size, _decode(path, image), True
    return verify_image(path), None, False


def verify_image(path: Path) -> tuple[int, int]:
    """`read_image_size`, and a check that the file is not cut off.

    A JPEG, PNG or WebP shows it by its last bytes. If these are wrong, and for every other format, the image is
    decoded. Damage in the middle of a file shows only when it is decoded.
    """
    with _open(path) as image:
        file = image.fp  # None if reading the EXIF behind a PNG's pixels has already decoded the image
        size = _read_oriented_size(image)
        is_whole = file is not None and is_complete(file)
    return size if is_whole else load_image(path).size


# --- open and decode ---------------------------------------------------------------------------------------------


@contextmanager
def _open(path: Path, max_pixels: int | None = None) -> Iterator[ImageFile.ImageFile]:
    """The image opened by Pillow. Closes the file at the end; every error meanwhile becomes a LorgnetteError.

    The size is checked at once: an image that is refused costs no decode, and EXIF behind a PNG's pixels needs one.
    """
    _check_file(path)
    _silence_pil()
    try:
        with path.open("rb") as file, open_pillow(file) as image:
            _check_size(path, image.size, max_pixels)
            yield image
    except LorgnetteError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes: struct.error, KeyError, …
        raise explain_decode_error(path, error) from error


def _check_file(path: Path) -> None:
    """Before opening: a pipe would block for ever, a device would never end."""
    where = str(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            message, hint = "image is a link to a file that is missing", "mend the link, or remove it"
            raise LorgnetteError(message, where=f"{where} → {os.readlink(path)}", hint=hint) from error
        raise _explain_missing(path) from error
    except (OSError, ValueError) as error:  # the name is too long or has a NUL; the folder is not readable
        reason = error.strerror if isinstance(error, OSError) else error
        where = where if len(where) <= 500 else f"{where[:500]}…"
        raise LorgnetteError(f"image cannot be reached: {reason}", where=where, hint="correct the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise LorgnetteError("a folder, not an image", where=where, hint="name a file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise LorgnetteError("not an ordinary file", where=where, hint="name an image file")
    if status.st_size == 0:
        raise LorgnetteError("image is empty (zero bytes)", where=where, hint="get it again, or remove its row")


def _explain_missing(path: Path) -> LorgnetteError:
    if (same := find_same_name(path)) is not None:
        if unicodedata.normalize("NFC", str(path)) == unicodedata.normalize("NFC", str(same)):
            message = "image is missing, but one is there whose name looks the same, in another Unicode form"
            hint = "copy the name from the folder (`ls`): its letters with accents are composed in another way"
            return LorgnetteError(message, where=str(path), hint=hint)
        message = "image is missing, but one is there whose name differs only in letter case, Unicode form or escapes"
        return LorgnetteError(message, where=f"{path}; there: {same}", hint="write the name as it is there")
    if _DRIVE.search(str(path)):
        hint = "name the folder with the images: --images-from FOLDER (data.images_from=FOLDER)"
        return LorgnetteError("image is missing: its path is of another computer", where=str(path), hint=hint)
    if not path.suffix and (suffix := next((s for s in sorted(IMAGE_SUFFIXES) if os.path.exists(f"{path}{s}")), "")):
        message = "image is missing, but one is there with an ending"
        return LorgnetteError(message, where=f"{path}; there: {path.name}{suffix}", hint="write the ending of the name")
    if folder := next((folder for folder in list_folders(path.parent) if os.path.exists(folder / path.name)), None):
        here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        hint = f"name the folder with the images: --images-from {quote_word(here)}"
        return LorgnetteError("image is missing, but one is in a folder beside it", where=str(path), hint=hint)
    hint = "correct the path (relative: to the data file's folder), or set images_from to the images' folder"
    hint = "write / instead of \\ in the path, or set images_from to the images' folder" if "\\" in str(path) else hint
    return LorgnetteError("image is missing", where=str(path), hint=hint)


def _check_size(path: Path, size: tuple[int, int], max_pixels: int | None = None) -> None:
    width, height = size
    if min(size) < 1:
        raise LorgnetteError(f"image has no area ({width}×{height})", where=str(path), hint="replace or remove it")
    max_pixels = max_pixels or MAX_PIXELS
    if width * height > max_pixels:
        message = f"image is too large: {width}×{height} pixels, more than {max_pixels:,}"
        raise ImageTooLargeError(message, where=str(path), hint="scale it down, or remove its row")


def _read_oriented_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Width and height after orientation. Pillow gives a TIFF's size already turned."""
    return image.size[::-1] if _read_orientation(image) >= 5 and image.format != "TIFF" else image.size


def _read_orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1–8; 1 if there is none or it is broken, as viewers do.

    ImageOps.exif_transpose is not used: it writes the EXIF back and fails on tags of a wrong type.
    """
    # PngImageFile.getexif decodes the whole image in case EXIF follows the pixels.
    has_no_late_exif = image.format == "PNG" and image.fp is not None and not has_late_metadata(image.fp)
    read_exif = Image.Image.getexif if has_no_late_exif else type(image).getexif
    try:
        value = read_exif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF raises nearly anything, and must not make the image unusable
        return 1
    return value if value in _TRANSPOSES else 1


def _decode(path: Path, image: ImageFile.ImageFile) -> Image.Image:
    """The pixels of an open image as upright RGB."""
    image.load()
    transpose = _TRANSPOSES.get(_read_orientation(image))
    rgb = convert_to_rgb(image)
    if transpose is not None:
        rgb = rgb.transpose(transpose)
    elif rgb is image:
        rgb = image.copy()  # the result must not hold on to the closed file
    _check_size(path, rgb.size)
    rgb.info.clear()
    return rgb


def _decode_upper(
    path: Path, image: JpegImagePlugin.JpegImageFile, min_side: int, upper_fraction: float
) -> Image.Image | None:
    """The image with only its upper part decoded; None if that is impossible or cannot be proven."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or _read_orientation(image) != 1 or image.fp is None:
        return None
    scan_start = image.fp.tell()  # Pillow reads a JPEG's header up to the start of its scan
    image.fp.seek(0)
    if (head := truncate_jpeg(image.fp.read(), scan_start)) is None:
        return None
    with Image.open(io.BytesIO(head), formats=("JPEG",)) as part:
        part.draft(None, (min_side, min_side))
        rgb = _decode(path, part)
    # libjpeg fills in gray (128) at the data's end: rows below upper_fraction that are not all gray prove that decoding
    # went beyond it. One row of blocks is added, since the last one may be incomplete.
    block_height = 8 * max(layer[2] for layer in image.layer)
    needed = math.ceil(upper_fraction * rgb.height) + math.ceil(block_height * rgb.height / image.height)
    below = rgb.crop((0, needed, *rgb.size)) if needed < rgb.height else None
    return rgb if below is not None and set(below.getextrema()) != {(128, 128)} else None


def _silence_pil() -> None:
    """Hide Pillow's own warnings (odd EXIF, many pixels): whatever matters is raised.

    `warnings.catch_warnings` swaps the process's list of filters, which is not thread-safe. Instead one filter that
    matches only modules inside PIL is put first, again whenever another has displaced it.
    """
    if not warnings.filters or warnings.filters[0] != _PIL_WARNING_FILTER:
        with _lock:
            warnings.filterwarnings("ignore", module=_PIL_WARNING_FILTER[3].pattern)


# --- color: every mode that Pillow opens → 8-bit RGB, scaled, never clipped -----------------------------------------


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image in RGB. Transparent pixels become white, as viewers and pages show them."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _DEEP_MODES:
        return _scale_to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    for top, bottom in _iter_bands(image.size):
        band = image.crop((0, top, image.width, bottom)).convert("RGBA")
        canvas.paste(band.convert("RGB"), (0, top), mask=band.getchannel("A"))
    return canvas


def _iter_bands(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of each band."""
    width, height = size
    step = max(1, _BAND_PIXELS // width)
    return ((top, min(top + step, height)) for top in range(0, height, step))


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Pillow's own convert() clips at 255, which turns most of these images white."""
    values = np.asarray(image)
    bands = [slice(*band) for band in _iter_bands(image.size)]
    low, high = _find_range(image.mode, [values[band] for band in bands])
    gray = np.empty(values.shape, np.uint8)
    for band in bands:
        scaled = (values[band].astype(np.float64) - low) * (255.0 / (high - low))
        gray[band] = np.nan_to_num(np.clip(scaled, 0, 255), nan=0.0).round()
    if isinstance(transparent := image.info.get("transparency"), int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _find_range(mode: str, bands: Sequence[np.ndarray]) -> tuple[float, float]:
    """The values that become black and white.

    A 16-bit mode defines them. 32-bit integers and floats do not: then it is the smallest usual range that holds
    every value (0–1 for floats, 0–255, 0–65535), else the image's own minimum and maximum.
    """
    if mode.startswith("I;16"):
        return 0.0, 65535.0
    finite = (values for band in bands if (values := band[np.isfinite(band)]).size)
    extremes = [(float(values.min()), float(values.max())) for values in finite] or [(0.0, 0.0)]
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    usual = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    if white := next((white for white in usual if low >= 0.0 and high <= white), None):
        return 0.0, white
    return low, high if high > low else low + 1.0  # a single value becomes black


# --- truncation: is the file cut off? A few bytes are read, nothing is decoded. -------------------------------------
# A wrong "no" costs one decode; a wrong "yes" would let a cut-off file into training. So every format that does not
# say cheaply where it ends gets a "no".

_EOI = b"\xff\xd9"
"""JPEG's end-of-image marker."""
_UPPER_BYTES_FRACTION = 0.4
"""Of a scan's bytes: in 80 photographs of COCO all but a few have their upper quarter in them."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}


def is_complete(file: IO[bytes]) -> bool:
    """True only if the end of the file proves that nothing is missing; False asks for a full decode.

    The proof is JPEG's EOI marker, PNG's IEND chunk, the length in WebP's header, or the boxes of HEIC and AVIF. An
    interrupted download lacks it, and so does a preallocated file of the right size that ends in zeros.
    """
    file.seek(0)
    head = file.read(12)
    if head.startswith(b"\xff\xd8"):
        return _read_tail(file, 2) == _EOI
    if head.startswith(_PNG):
        return _scan_png_chunks(file)[0]
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        is_long_enough = file.seek(0, os.SEEK_END) >= int.from_bytes(head[4:8], "little") + 8
        return is_long_enough and any(_read_tail(file, 64))
    return head[4:8] == b"ftyp" and image_signature.has_all_boxes(file)


def truncate_jpeg(content: bytes, scan_start: int) -> bytes | None:
    """A JPEG made of the first two fifths of a JPEG's scan; decoded, its lower part is gray.

    None unless the content is one whole scan up to EOI without markers other than restart markers (ITU-T T.81,
    B.1.1.5 and B.2.1). Anything else, such as more scans or damage at which a decoder stops, needs a full decode.
    """
    if not content.endswith(_EOI):
        return None
    scan = np.frombuffer(content, np.uint8)[scan_start : -len(_EOI)]
    markers = scan[np.flatnonzero(scan[:-1] == 0xFF) + 1]
    if ((markers != 0) & ((markers < 0xD0) | (markers > 0xD7))).any():
        return None
    return content[: scan_start + round(_UPPER_BYTES_FRACTION * len(scan))] + _EOI


def has_late_metadata(file: IO[bytes]) -> bool:
    """True if a PNG has text or EXIF behind its pixels, so that its header does not show the orientation."""
    offset = file.tell()
    try:
        return _scan_png_chunks(file)[1]
    finally:
        file.seek(offset)


def _read_tail(file: IO[bytes], count: int) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - count))
    return file.read(count)


def _scan_png_chunks(file: IO[bytes]) -> tuple[bool, bool]:
    """(IEND reached, metadata after the first IDAT), from the chunks' headers."""
    size = file.seek(0, os.SEEK_END)
    offset, has_pixels, is_late = len(_PNG), False, False
    while offset + 12 <= size:
        file.seek(offset)
        head = file.read(8)
        kind = head[4:]
        if kind == b"IEND":
            return True, is_late
        has_pixels = has_pixels or kind == b"IDAT"
        is_late = is_late or (has_pixels and kind in _PNG_METADATA)
        offset += 12 + int.from_bytes(head[:4], "big")
    return False, is_late


# --- errors: what the file is instead of an image, from its first bytes ---------------------------------------------

_GET_AGAIN = "download the file again (it is cut off or damaged), or remove its row"
_LFS_POINTER = ("a git-lfs pointer, not the image itself", "run `git lfs pull` in the repository it came from")
_WEB_PAGE = ("a web page (HTML or XML), not an image", "the server sent an error page: download the image again")
_WEB_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")


def explain_decode_error(path: Path, error: Exception) -> LorgnetteError:
    """The error to raise for whatever Pillow or the operating system raised on this file."""
    message, hint = _explain(path, error)
    is_too_large = isinstance(error, Image.DecompressionBombError | MemoryError)
    return (ImageTooLargeError if is_too_large else LorgnetteError)(message, where=str(path), hint=hint)


def _explain(path: Path, error: Exception) -> tuple[str, str]:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        limit = " for this machine's memory" if isinstance(error, MemoryError) else f": more than {MAX_PIXELS:,} pixels"
        return f"image is too large{limit}", "scale it down, or remove its row"
    if isinstance(error, OSError) and error.errno is not None:
        return f"image cannot be read: {error.strerror}", "check the path, its permissions and the disk"
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(512)
    if other_format := detect_other_format(head):
        return other_format
    if isinstance(error, UnidentifiedImageError):
        damaged = "image is damaged: its header is invalid", _GET_AGAIN
        foreign = "not an image in a supported format", "save it as JPEG or PNG, or remove its row"
        return damaged if image_signature.detect_image_format(head) else foreign
    if isinstance(error, ValueError) and "MAX_TEXT" in str(error):
        return f"image has an oversized text chunk: {text}", "save it again without its metadata"
    return f"image cannot be decoded: {text}", _GET_AGAIN


def detect_other_format(head: bytes) -> tuple[str, str] | None:
    """What a file that begins with `head` is, and what to do; None if it may be an image."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    needs_reader = image_signature.detect_image_format(head) == "heic" and not load_heic_reader()
    explanations = (
        (text.startswith(b"version https://git-lfs"), _LFS_POINTER),
        (b"<svg" in text, ("an SVG drawing, which has no pixels", "convert it to PNG")),
        (text.startswith(_WEB_PAGE_STARTS), _WEB_PAGE),
        (needs_reader, ("a HEIC image, which needs a reader", "pip install pillow-heif, or convert it to JPEG")),
        (head.startswith(b"%PDF"), ("a PDF document, not an image", "convert its pages to PNG")),
        (not head.strip(b"\0"), ("the file begins with zeros, not with an image", _GET_AGAIN)),
    )
    return next((explanation for applies, explanation in explanations if applies), None)
