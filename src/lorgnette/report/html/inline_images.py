"""Images inside an HTML page: thumbnails as data URIs, all together within a size limit."""

import base64
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lorgnette.report.thumbnail import UnreadableImageError, encode_thumbnail

PAGE_IMAGE_BYTES = 16_000_000
"""All images of a page, before base64 makes them a third larger."""
MAX_IMAGE_BYTES, MIN_IMAGE_BYTES = 90_000, 4_000
"""One image."""


@dataclass(frozen=True, slots=True)
class InlineImage:
    """An image for a template. source: its data URI; empty if it cannot be shown, and problem says why."""

    name: str
    source: str = ""
    problem: str = ""


def inline_images(
    paths: Iterable[Path], max_bytes: int = MAX_IMAGE_BYTES, *, damaged: Collection[Path] = ()
) -> dict[Path, InlineImage]:
    """Inline a page's images with at most `max_bytes` each. A path that occurs twice counts twice. damaged: files that
    may be cut off, shown as far as they go."""
    counts = Counter(paths)
    budget = min(max_bytes, max(MIN_IMAGE_BYTES, PAGE_IMAGE_BYTES // max(1, counts.total())))
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes and encodes
        return dict(
            zip(counts, pool.map(lambda path: _inline_image(path, budget, path in damaged), counts), strict=True)
        )


def encode_data_uri(content: bytes, image_format: str) -> str:
    """The bytes of an image as a data URI."""
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode('ascii')}"


def _inline_image(path: Path, max_bytes: int, is_damaged: bool) -> InlineImage:
    try:
        content = encode_thumbnail(path, max_bytes, is_damaged=is_damaged)
        return InlineImage(path.name, encode_data_uri(content, "jpeg"))
    except UnreadableImageError as error:
        return InlineImage(path.name, problem=str(error))
