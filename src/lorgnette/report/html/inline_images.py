"""Pictures that lie in a page: thumbnails as data addresses, all of them together within a budget."""

import base64
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lorgnette.report.thumbnail import UnreadableError, jpeg

PICTURE_BYTES = 16_000_000
"""For all pictures of a page together, before base64 makes them a third larger."""
MOST_BYTES, FEWEST_BYTES = 90_000, 4_000
"""Of one picture."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture as a template gets it: an address with the bytes in it, or what stands in its place."""

    name: str
    source: str = ""
    problem: str = ""


def embedded(uses: Iterable[Path], most: int = MOST_BYTES) -> dict[Path, Shown]:
    """Every picture that a page shows, in at most so many bytes; one that stands on it twice is paid for twice."""
    counted = Counter(uses)
    budget = min(most, max(FEWEST_BYTES, PICTURE_BYTES // max(1, counted.total())))
    with ThreadPoolExecutor() as pool:  # decoding and encoding let other threads run
        return dict(zip(counted, pool.map(lambda path: _shown(path, budget), counted), strict=True))


def data_uri(content: bytes, form: str) -> str:
    """The bytes of a picture as an address."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode('ascii')}"


def _shown(path: Path, budget: int) -> Shown:
    try:
        return Shown(path.name, data_uri(jpeg(path, budget), "jpeg"))
    except UnreadableError as error:
        return Shown(path.name, problem=str(error))
