"""The bytes of an image for the page: the file itself where browsers show it, else a JPEG."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorgnette.data.images import MAX_PIXELS, decode_preview, read_image_size
from lorgnette.io.image_signature import HEAD_BYTES, detect_image_format

MAX_SIDE = 2048
"""Pixels of the longer side: more than any screen gives the image."""
THUMBNAIL_SIDE = 192
MAX_FILE_BYTES = 4 * 2**20
"""A larger file is sent as a JPEG of MAX_SIDE."""
_MEDIA_TYPES = {name: f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "avif", "bmp")}
"""Of the formats that browsers show."""
_QUALITY = 90


@dataclass(frozen=True)
class ImageBytes:
    """An image as HTTP sends it."""

    content: bytes
    media_type: str


def read_image_bytes(path: Path, max_side: int = MAX_SIDE) -> ImageBytes:
    """The file if browsers show it and it is small enough; else a JPEG, upright, of max_side pixels at most.

    Raises LorgnetteError for a file that is no image or that is damaged.
    """
    size = read_image_size(path)
    with path.open("rb") as file:
        image_format = detect_image_format(file.read(HEAD_BYTES))
        media_type = _MEDIA_TYPES.get(image_format or "")
        if media_type and max(size) <= max_side and path.stat().st_size <= MAX_FILE_BYTES:
            file.seek(0)
            return ImageBytes(file.read(), media_type)
    return ImageBytes(_encode_jpeg(_load_small(path, max_side)), "image/jpeg")


def _load_small(path: Path, max_side: int) -> Image.Image:
    """The image, scaled down. A JPEG is decoded at a part of its size."""
    _, preview, _ = decode_preview(path, min_side=max_side, max_pixels=MAX_PIXELS)
    assert preview is not None  # only for more than max_pixels
    preview.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return preview


def _encode_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
