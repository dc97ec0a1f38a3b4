"""A picture, small and upright, for people to look at.

Knows nothing about what a model sees: that is the data room's reading, which refuses what is merely shown here.
"""

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps

JPEG_QUALITY = 82
MAX_SIDE = 448
MIN_SIDE = 128


class UnreadableImageError(Exception):
    """The picture cannot be shown; the text says why in a few words."""


def load_thumbnail(path: Path, max_side: int = MAX_SIDE) -> Image.Image:
    """RGB, turned as its EXIF says, no side longer than `side`, transparency on white."""
    try:
        with warnings.catch_warnings():
            # Corrupt metadata and suspicious sizes are warned about; both are only of interest where they fail.
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                opened.draft("RGB", (2 * max_side, 2 * max_side))  # JPEG: decode at a fraction, several times faster
                upright = ImageOps.exif_transpose(opened)
                return _shrink(_to_rgb(upright), max_side)
    except FileNotFoundError:
        raise UnreadableImageError("the file is gone") from None
    except Exception as error:
        # Pillow's decoders raise nearly anything on broken input, and a report must not end on a broken picture.
        raise UnreadableImageError(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from error


def encode_thumbnail(path: Path, max_bytes: int) -> bytes:
    """A thumbnail in at most `budget` bytes where that leaves a picture of SHORTEST, and never longer than LONGEST."""
    picture = load_thumbnail(path, MAX_SIDE)
    side = MAX_SIDE
    while True:
        encoded = _encode_jpeg(picture)
        if len(encoded) <= max_bytes or side <= MIN_SIDE:
            return encoded
        side = max(MIN_SIDE, min(int(side * 0.85), int(side * (max_bytes / len(encoded)) ** 0.5)))
        picture = _shrink(picture, side)


def _encode_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True)
    return buffer.getvalue()


def _shrink(picture: Image.Image, max_side: int) -> Image.Image:
    if max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = picture.point(lambda value: value / 256).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")
