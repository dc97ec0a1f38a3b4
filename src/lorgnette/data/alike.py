"""Which pictures look alike: the same one saved again, in another format, quality or size.

A sketch is the picture in 16×16 cells, the mean colour of each; two pictures look alike where no cell differs by much
and the cells on average by very little. Cropped, mirrored or recoloured pictures are other pictures here. Colours
count: what differs in one object's colour alone is no look-alike.

Knows nothing about rows.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lorgnette.data.pictures import load

SIDE = 16
CELL, MEAN = 26, 4.0
"""Most by which any cell, and the cells on average, may differ, of 0–255. bench/LOG.md says what that finds."""
_DECODED = 4 * SIDE
_MOST_PIXELS = 1 << 25
"""Beyond it only a JPEG, which is decoded at a fraction, is worth a sketch."""


def sketch(path: Path, size: tuple[int, int]) -> bytes | None:
    """16×16 cells of RGB, row by row; None for a huge picture that could only be decoded whole.

    Raises LorgnetteError where the picture cannot be decoded.
    """
    if size[0] * size[1] > _MOST_PIXELS and path.suffix.lower() not in (".jpg", ".jpeg"):
        return None
    seen = load(path, least=_DECODED)
    # A JPEG's last row and column of blocks may reach beyond the picture.
    fraction = 2 ** -round(math.log2(size[0] / seen.width))
    box = (0, 0, min(seen.width, size[0] * fraction), min(seen.height, size[1] * fraction))
    return seen.resize((SIDE, SIDE), Image.Resampling.BOX, box=box).tobytes()


def groups(sketches: Sequence[bytes]) -> list[list[int]]:
    """Places of sketches that look alike, two or more together; each place in one group at most.

    The first of a group, by brightness, speaks for it: the others look like it, not necessarily like each other.
    Sorted by mean brightness, only neighbours need be compared: 100,000 pictures in seconds.
    """
    cells = np.frombuffer(b"".join(sketches), np.uint8).reshape(len(sketches), SIDE * SIDE * 3)
    means = _means(cells)
    order = np.argsort(means[:, 0], kind="stable")
    cells, means = cells[order], means[order]
    ends = np.searchsorted(means[:, 0], means[:, 0] + MEAN, side="right")
    taken = np.zeros(len(order), bool)
    found: list[list[int]] = []
    for place, end in enumerate(ends.tolist()):
        if taken[place] or end == place + 1:
            continue
        near = np.flatnonzero((np.abs(means[place + 1 : end] - means[place]) <= MEAN).all(axis=1)) + place + 1
        near = near[~taken[near]]
        same = near[_alike(cells[near], cells[place])] if len(near) else near
        if len(same):
            taken[same] = True
            found.append(sorted(order[[place, *same.tolist()]].tolist()))
    return sorted(found)


def _means(cells: UInt8[np.ndarray, "N D"]) -> np.ndarray:
    """[N, 13]: the mean of all cells, then of each colour in each quarter. These too must agree to within MEAN, which
    sorts out nearly all pairs before cells are compared."""
    half = SIDE // 2
    quarters = cells.reshape(-1, 2, half, 2, half, 3).mean(axis=(2, 4), dtype=np.float32).reshape(-1, 12)
    return np.concatenate([quarters.mean(axis=1, keepdims=True), quarters], axis=1)


def _alike(others: UInt8[np.ndarray, "N D"], one: UInt8[np.ndarray, " D"]) -> np.ndarray:
    apart = np.abs(others.astype(np.int16) - one)
    return np.asarray((apart.max(axis=1) <= CELL) & (apart.mean(axis=1) <= MEAN))
