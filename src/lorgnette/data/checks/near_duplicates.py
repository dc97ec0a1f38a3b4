"""Which pictures look alike: the same one saved again, in another format, quality or size.

A sketch is the picture in 16×16 cells, the mean colour of each; two pictures look alike where no cell differs by much
and the cells on average by very little. Cropped, mirrored or recoloured pictures are other pictures here. Colours
count: what differs in one object's colour alone is no look-alike.

Knows nothing about rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image

CELLS_PER_SIDE = 16
MAX_CELL_DIFF, MAX_MEAN_DIFF = 26, 4.0
"""Most by which any cell, and the cells on average, may differ, of 0–255. bench/LOG.md says what that finds."""
MIN_SIDE = 2 * CELLS_PER_SIDE
"""Pixels of a side that a sketch is made from, at least."""
MAX_PIXELS = 1 << 25
"""Pixels beyond which only a JPEG, which is decoded at a fraction, is worth a sketch."""
UPPER_BYTES = CELLS_PER_SIDE // 4 * CELLS_PER_SIDE * 3
"""Bytes of a sketch that are the picture's upper quarter."""
UPPER_FRACTION = (CELLS_PER_SIDE // 4 + 0.5) / CELLS_PER_SIDE
"""Of a picture's height, so that its upper quarter is right to the last row."""
_REDUCED_SIDE = 8 * CELLS_PER_SIDE


def image_signature(image: Image.Image, size: tuple[int, int]) -> bytes:
    """16×16 cells of RGB, row by row. seen: the picture, or a JPEG decoded at a fraction of its size (width, height).

    A cell is the mean over its area to fractions of a pixel: whole pixels (Pillow's BOX) shift its edges by as much as
    an eighth of it, which shows wherever dark meets light.
    """
    # A JPEG's last row and column of blocks may reach beyond the picture.
    fraction = 2 ** -round(math.log2(size[0] / image.width))
    width, height = (min(own, whole * fraction) for own, whole in zip(image.size, size, strict=True))
    if (factor := min(image.size) // _REDUCED_SIDE) > 1:
        image, width, height = image.reduce(factor), width / factor, height / factor
    rows = _area_weights(image.height, height) @ np.asarray(image, np.float32).reshape(image.height, -1)
    cells = _area_weights(image.width, width) @ rows.reshape(CELLS_PER_SIDE, image.width, 3)
    return cells.round().astype(np.uint8).tobytes()


@lru_cache(maxsize=1024)
def _area_weights(pixels: int, used_pixels: float) -> Float32[np.ndarray, "S P"]:
    """What each of SIDE cells, laid over the first `used` pixels, takes of each pixel."""
    edges, starts = np.linspace(0, used_pixels, CELLS_PER_SIDE + 1), np.arange(pixels)
    covered = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    shares: np.ndarray = covered.clip(0) * CELLS_PER_SIDE / used_pixels
    return shares.astype(np.float32)


def candidates(signatures: Sequence[bytes]) -> list[int]:
    """Places of sketches whose upper quarter looks like another's: all that `groups` could put together, and others.

    Of the upper quarter the cells may differ by twice as much on average: what differs may stand there.
    """
    laid = _SignatureIndex.from_signatures([sketch[:UPPER_BYTES] for sketch in signatures], 2 * MAX_MEAN_DIFF)
    found = np.zeros(len(signatures), bool)
    for place in range(len(signatures)):
        # Of one that is found already, only those that are not need be told: a thousand white skies are no million.
        same = laid.find_similar(place, ~found if found[place] else None)
        if len(same):
            found[[place, *same.tolist()]] = True
    return sorted(laid.order[found].tolist())


def near_duplicate_groups(signatures: Sequence[bytes]) -> list[list[int]]:
    """Places of whole sketches that look alike, two or more together; each place in one group at most.

    The first of a group, by brightness, speaks for it: the others look like it, not necessarily like each other.
    """
    laid = _SignatureIndex.from_signatures(signatures, MAX_MEAN_DIFF)
    taken = np.zeros(len(signatures), bool)
    found: list[list[int]] = []
    for place in range(len(signatures)):
        same = laid.find_similar(place, ~taken) if not taken[place] else ()
        if len(same):
            taken[same] = True
            found.append(sorted(laid.order[[place, *same]].tolist()))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class _SignatureIndex:
    """Sketches sorted by mean brightness, so that only neighbours need be compared: 100,000 pictures in seconds.

    order: the place of each before. ends: where the neighbours of each end. quarter: one column of means, which rules
    out most of the neighbours, side by side. most: by which cells may differ on average.
    """

    order: Int64[np.ndarray, " N"]
    cells: UInt8[np.ndarray, "N D"]
    means: Float32[np.ndarray, "N 13"]
    quarter_means: Float32[np.ndarray, " N"]
    neighbor_ends: list[int]
    max_mean_diff: float

    @classmethod
    def from_signatures(cls, signatures: Sequence[bytes], max_mean_diff: float) -> "_SignatureIndex":
        cells = np.frombuffer(b"".join(signatures), np.uint8).reshape(
            len(signatures), len(signatures[0]) if signatures else UPPER_BYTES
        )
        means = _compute_means(cells)
        order = np.argsort(means[:, 0], kind="stable")
        cells, means = cells[order], means[order]
        ends = np.searchsorted(means[:, 0], means[:, 0] + max_mean_diff, side="right").tolist()
        return cls(order, cells, means, means[:, 1].copy(), ends, max_mean_diff)

    def find_similar(self, place: int, among: Bool[np.ndarray, " N"] | None) -> Int64[np.ndarray, " S"]:
        """Which behind it look like the one at this place."""
        end = self.neighbor_ends[place]
        close = np.abs(self.quarter_means[place + 1 : end] - self.quarter_means[place]) <= self.max_mean_diff
        near = np.flatnonzero(close if among is None else close & among[place + 1 : end]) + place + 1
        near = near[(np.abs(self.means[near] - self.means[place]) <= self.max_mean_diff).all(axis=1)]
        same: np.ndarray = (
            near[_is_similar(self.cells[near], self.cells[place], self.max_mean_diff)] if len(near) else near
        )
        return same


def _compute_means(cells: UInt8[np.ndarray, "N D"]) -> np.ndarray:
    """[N, 13]: the mean of all cells, then of each colour in each quarter. These too must agree as cells must on
    average, which sorts out nearly all pairs before cells are compared."""
    high = cells.shape[1] // (CELLS_PER_SIDE * 3)
    quarters = (
        cells.reshape(-1, 2, high // 2, 2, CELLS_PER_SIDE // 2, 3).mean(axis=(2, 4), dtype=np.float32).reshape(-1, 12)
    )
    return np.concatenate([quarters.mean(axis=1, keepdims=True), quarters], axis=1)


def _is_similar(others: UInt8[np.ndarray, "N D"], one: UInt8[np.ndarray, " D"], max_mean_diff: float) -> np.ndarray:
    apart = np.abs(others.astype(np.int16) - one)
    return np.asarray((apart.max(axis=1) <= MAX_CELL_DIFF) & (apart.mean(axis=1) <= max_mean_diff))
