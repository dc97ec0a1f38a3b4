"""Small, upright versions of images for people to look at.

Knows nothing about the model's input: data/images.py refuses some images that are shown here.
"""

import io
import warnings
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

from lorgnette.data.images import decode_budget, open_pillow

JPEG_QUALITY = 82
MAX_SIDE = 448
MIN_SIDE = 128


class UnreadableImageError(Exception):
    """The image cannot be shown. The text gives the reason in a few words."""


def load_thumbnail(path: Path, max_side: int = MAX_SIDE, *, is_damaged: bool = False) -> Image.Image:
    """RGB, rotated as its EXIF orientation says, no side longer than `max_side`, transparency on white.

    is_damaged: show what can be decoded of a file that is cut off.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about corrupt metadata and very large sizes. Only a failure matters here.
            warnings.simplefilter("ignore")
            with path.open("rb") as file, open_pillow(file) as image:
                image.draft("RGB", (2 * max_side, 2 * max_side))  # decodes JPEG at reduced size, several times faster
                with decode_budget.reserve(image.size):
                    if is_damaged:
                        _decode_part(image)
                    ImageOps.exif_transpose(image, in_place=True)
                    return _shrink(_to_rgb(image), max_side)
    except FileNotFoundError:
        raise UnreadableImageError("file not found") from None
    except Exception as error:
        # Pillow's decoders raise nearly any exception for broken input, and a report must not fail on an image.
        raise UnreadableImageError(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from error


def encode_thumbnail(path: Path, max_bytes: int, *, is_damaged: bool = False) -> bytes:
    """A JPEG of at most `max_bytes`, if an image of MIN_SIDE pixels fits in them."""
    image, side = load_thumbnail(path, MAX_SIDE, is_damaged=is_damaged), MAX_SIDE
    while True:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True)
        num_bytes = buffer.getbuffer().nbytes
        if num_bytes <= max_bytes or side <= MIN_SIDE:
            return buffer.getvalue()
        side = max(MIN_SIDE, min(int(side * 0.85), int(side * (max_bytes / num_bytes) ** 0.5)))
        image = _shrink(image, side)


def _decode_part(image: ImageFile.ImageFile) -> None:
    """Decode as far as the file goes; what is missing stays black. Raises OSError if nothing can be decoded."""
    try:
        image.load()
    except OSError:
        image.tile = []  # Pillow keeps what it has decoded, and tries again unless nothing is left to do
        if image.getbbox() is None:
            raise


def _shrink(image: Image.Image, max_side: int) -> Image.Image:
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
