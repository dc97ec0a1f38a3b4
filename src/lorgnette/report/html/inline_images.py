"""Pictures that lie in a page: thumbnails as data addresses, all of them together within a budget."""

import base64
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lorgnette.report.thumbnail import UnreadableImageError, encode_thumbnail

PAGE_IMAGE_BYTES = 16_000_000
"""For all pictures of a page together, before base64 makes them a third larger."""
MAX_IMAGE_BYTES, MIN_IMAGE_BYTES = 90_000, 4_000
"""Of one picture."""


@dataclass(frozen=True, slots=True)
class InlineImage:
    """A picture as a template gets it: an address with the bytes in it, or what stands in its place."""

    name: str
    source: str = ""
    problem: str = ""


def inline_images(paths: Iterable[Path], max_bytes: int = MAX_IMAGE_BYTES) -> dict[Path, InlineImage]:
    """Every picture that a page shows, in at most so many bytes; one that stands on it twice is paid for twice."""
    counted = Counter(paths)
    budget = min(max_bytes, max(MIN_IMAGE_BYTES, PAGE_IMAGE_BYTES // max(1, counted.total())))
    with ThreadPoolExecutor() as pool:  # decoding and encoding let other threads run
        return dict(zip(counted, pool.map(lambda path: _inline_image(path, budget), counted), strict=True))


def encode_data_uri(content: bytes, image_format: str) -> str:
    """The bytes of a picture as an address."""
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode('ascii')}"


def _inline_image(path: Path, budget: int) -> InlineImage:
    try:
        return InlineImage(path.name, encode_data_uri(encode_thumbnail(path, budget), "jpeg"))
    except UnreadableImageError as error:
        return InlineImage(path.name, problem=str(error))
