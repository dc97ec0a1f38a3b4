"""A picture, small and upright, for people to look at.

Knows nothing about what a model sees: that is the data room's reading, which refuses what is merely shown here.
"""

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps

QUALITY = 82
LONGEST = 448
SHORTEST = 128


class UnreadableError(Exception):
    """The picture cannot be shown; the text says why in a few words."""


def thumbnail(path: Path, side: int = LONGEST) -> Image.Image:
    """RGB, turned as its EXIF says, no side longer than `side`, transparency on white."""
    try:
        with warnings.catch_warnings():
            # Corrupt metadata and suspicious sizes are warned about; both are only of interest where they fail.
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                opened.draft("RGB", (2 * side, 2 * side))  # JPEG: decode at a fraction, several times faster
                upright = ImageOps.exif_transpose(opened)
                return _shrunk(_rgb(upright), side)
    except FileNotFoundError:
        raise UnreadableError("the file is gone") from None
    except Exception as error:
        # Pillow's decoders raise nearly anything on broken input, and a report must not end on a broken picture.
        raise UnreadableError(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from error


def jpeg(path: Path, budget: int) -> bytes:
    """A thumbnail in at most `budget` bytes where that leaves a picture of SHORTEST, and never longer than LONGEST."""
    picture = thumbnail(path, LONGEST)
    side = LONGEST
    while True:
        encoded = _encoded(picture)
        if len(encoded) <= budget or side <= SHORTEST:
            return encoded
        side = max(SHORTEST, min(int(side * 0.85), int(side * (budget / len(encoded)) ** 0.5)))
        picture = _shrunk(picture, side)


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    return buffer.getvalue()


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = picture.point(lambda value: value / 256).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")
