"""Which pictures look alike: the same one saved again, in another format, quality or size.

A sketch is the picture in 16×16 cells, the mean colour of each; two pictures look alike where no cell differs by much
and the cells on average by very little. Cropped, mirrored or recoloured pictures are other pictures here. Colours
count: what differs in one object's colour alone is no look-alike.

Knows nothing about rows.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

SIDE = 16
CELL, MEAN = 26, 4.0
"""Most by which any cell, and the cells on average, may differ, of 0–255. bench/LOG.md says what that finds."""
LEAST = 2 * SIDE
"""Pixels of a side that a sketch is made from, at least."""
MOST = 1 << 25
"""Pixels beyond which only a JPEG, which is decoded at a fraction, is worth a sketch."""
_FINE = 8 * SIDE


def sketch(seen: Image.Image, size: tuple[int, int]) -> bytes:
    """16×16 cells of RGB, row by row. seen: the picture, or a JPEG decoded at a fraction of its size (width, height).

    A cell is the mean over its area to fractions of a pixel: whole pixels (Pillow's BOX) shift its edges by as much as
    an eighth of it, which shows wherever dark meets light.
    """
    # A JPEG's last row and column of blocks may reach beyond the picture.
    fraction = 2 ** -round(math.log2(size[0] / seen.width))
    width, height = (min(own, whole * fraction) for own, whole in zip(seen.size, size, strict=True))
    if (factor := min(seen.size) // _FINE) > 1:
        seen, width, height = seen.reduce(factor), width / factor, height / factor
    rows = _shares(seen.height, height) @ np.asarray(seen, np.float32).reshape(seen.height, -1)
    cells = _shares(seen.width, width) @ rows.reshape(SIDE, seen.width, 3)
    return cells.round().astype(np.uint8).tobytes()


@lru_cache(maxsize=1024)
def _shares(pixels: int, used: float) -> Float32[np.ndarray, "S P"]:
    """What each of SIDE cells, laid over the first `used` pixels, takes of each pixel."""
    edges, starts = np.linspace(0, used, SIDE + 1), np.arange(pixels)
    covered = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    shares: np.ndarray = covered.clip(0) * SIDE / used
    return shares.astype(np.float32)


def groups(sketches: Sequence[bytes]) -> list[list[int]]:
    """Places of sketches that look alike, two or more together; each place in one group at most.

    The first of a group, by brightness, speaks for it: the others look like it, not necessarily like each other.
    Sorted by mean brightness, only neighbours need be compared: 100,000 pictures in seconds.
    """
    cells = np.frombuffer(b"".join(sketches), np.uint8).reshape(len(sketches), SIDE * SIDE * 3)
    means = _means(cells)
    order = np.argsort(means[:, 0], kind="stable")
    cells, means = cells[order], means[order]
    quarter = means[:, 1].copy()  # one number a picture, side by side, rules out most of the neighbours
    ends = np.searchsorted(means[:, 0], means[:, 0] + MEAN, side="right")
    taken = np.zeros(len(order), bool)
    found: list[list[int]] = []
    for place, end in enumerate(ends.tolist()):
        if taken[place] or end == place + 1:
            continue
        near = np.flatnonzero(np.abs(quarter[place + 1 : end] - quarter[place]) <= MEAN) + place + 1
        near = near[(np.abs(means[near] - means[place]) <= MEAN).all(axis=1) & ~taken[near]]
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
