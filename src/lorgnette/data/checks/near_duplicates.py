"""Finds images that look alike: the same image saved again in another format, quality or size.

An image's signature is the mean color of 16×16 cells. Two images are near-duplicates if no cell differs by more than
MAX_CELL_DIFF and the cells differ by at most MAX_MEAN_DIFF on average. Cropped, mirrored or recolored images count as
different images, and so do two images that differ only in the color of one object. Knows nothing about rows.

Shapes: N images, D = 3 · cells bytes of a signature (768 for a whole image, 192 for its upper quarter).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, Int64
from PIL import Image

CELLS_PER_SIDE = 16
MAX_CELL_DIFF, MAX_MEAN_DIFF = 26, 4.0
"""Largest difference of any cell, and of the cells on average, of 0–255. bench/LOG.md has what they find."""
MIN_SIDE = 2 * CELLS_PER_SIDE
"""Smallest side, in pixels, of the preview from which a signature is made."""
MAX_PIXELS = 1 << 25
"""Larger images get no signature, unless they are JPEGs, which are decoded at a fraction of their size."""
UPPER_BYTES = CELLS_PER_SIDE // 4 * CELLS_PER_SIDE * 3
"""The bytes of a signature that describe the image's upper quarter."""
UPPER_FRACTION = (CELLS_PER_SIDE // 4 + 0.5) / CELLS_PER_SIDE
"""Of an image's height: the upper quarter, and half a cell more so that its last row is exact."""
_REDUCED_SIDE = 8 * CELLS_PER_SIDE


def image_signature(image: Image.Image, size: tuple[int, int]) -> bytes:
    """16×16 cells of RGB bytes, row by row.

    image: the image, or a JPEG decoded at a fraction of its size. size: its full (width, height).

    A cell's mean is over its exact area, with fractions of a pixel. Whole pixels (Pillow's BOX) would move its edges
    by up to an eighth of the cell, which shows wherever dark meets light.
    """
    # A JPEG's last row and column of blocks may reach beyond the image: use only the part inside it.
    fraction = 2 ** -round(math.log2(size[0] / image.width))
    width, height = (min(side, full * fraction) for side, full in zip(image.size, size, strict=True))
    if (factor := min(image.size) // _REDUCED_SIDE) > 1:
        image, width, height = image.reduce(factor), width / factor, height / factor
    rows = _area_weights(image.height, height) @ np.asarray(image, np.float32).reshape(image.height, -1)
    cells = _area_weights(image.width, width) @ rows.reshape(CELLS_PER_SIDE, image.width, 3)
    return cells.round().astype(np.uint8).tobytes()


@lru_cache(maxsize=1024)
def _area_weights(pixels: int, used_pixels: float) -> Float32[np.ndarray, "S P"]:
    """The weight of each pixel in each of the S cells that divide the first `used_pixels` pixels."""
    edges, starts = np.linspace(0, used_pixels, CELLS_PER_SIDE + 1), np.arange(pixels)
    overlaps = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    weights: np.ndarray = overlaps.clip(0) * CELLS_PER_SIDE / used_pixels
    return weights.astype(np.float32)


def candidates(signatures: Sequence[bytes]) -> list[int]:
    """Indices of the images whose upper quarter looks like another's: a superset of the near-duplicates.

    The cells of the upper quarter may differ by twice as much on average, since the difference may be all in them.
    """
    index = _SignatureIndex([signature[:UPPER_BYTES] for signature in signatures], 2 * MAX_MEAN_DIFF)
    is_candidate = np.zeros(len(signatures), bool)
    for i in range(len(signatures)):
        # A candidate need only be compared with images that are none yet: a thousand white skies are no million pairs.
        similar = index.find_similar(i, ~is_candidate if is_candidate[i] else None)
        if len(similar):
            is_candidate[[i, *similar.tolist()]] = True
    return sorted(index.order[is_candidate].tolist())


def near_duplicate_groups(signatures: Sequence[bytes]) -> list[list[int]]:
    """Indices of images that look alike, in groups of two or more; each image in at most one group.

    The darkest image of a group represents it: the others look like it, not necessarily like each other.
    """
    index = _SignatureIndex(signatures, MAX_MEAN_DIFF)
    is_grouped = np.zeros(len(signatures), bool)
    groups: list[list[int]] = []
    for i in range(len(signatures)):
        similar = index.find_similar(i, ~is_grouped) if not is_grouped[i] else ()
        if len(similar):
            is_grouped[similar] = True
            groups.append(sorted(index.order[[i, *similar]].tolist()))
    return sorted(groups)


class _SignatureIndex:
    """Signatures sorted by mean brightness, so that only neighbors are compared: 100,000 images take seconds.

    order: [N] the index of each before sorting. max_mean_diff: largest difference of the cells on average.
    """

    def __init__(self, signatures: Sequence[bytes], max_mean_diff: float) -> None:
        width = len(signatures[0]) if signatures else UPPER_BYTES
        cells = np.frombuffer(b"".join(signatures), np.uint8).reshape(len(signatures), width)  # [N, D]
        # [N, 13]: the mean of all cells, then of each color in each quarter. Cells that agree on average have means
        # that agree, so comparing these 13 numbers sorts out nearly all pairs.
        blocks = cells.reshape(-1, 2, width // (CELLS_PER_SIDE * 6), 2, CELLS_PER_SIDE // 2, 3)
        quarters = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(-1, 12)
        means = np.concatenate([quarters.mean(axis=1, keepdims=True), quarters], axis=1)
        self.order, self.max_mean_diff = np.argsort(means[:, 0], kind="stable"), max_mean_diff
        self.cells, self.means = cells[self.order], means[self.order]
        # One column of means, contiguous, rules out most neighbors.
        brightness, self.quarter_means = self.means[:, 0], self.means[:, 1].copy()
        self.neighbor_ends = np.searchsorted(brightness, brightness + max_mean_diff, side="right").tolist()

    def find_similar(self, i: int, among: Bool[np.ndarray, " N"] | None) -> Int64[np.ndarray, " S"]:
        """The indices behind i of images that look like image i. Cheap tests come first."""
        end = self.neighbor_ends[i]
        is_close = np.abs(self.quarter_means[i + 1 : end] - self.quarter_means[i]) <= self.max_mean_diff
        close: np.ndarray = np.flatnonzero(is_close if among is None else is_close & among[i + 1 : end]) + i + 1
        close = close[(np.abs(self.means[close] - self.means[i]) <= self.max_mean_diff).all(axis=1)]
        if len(close):
            diff = np.abs(self.cells[close].astype(np.int16) - self.cells[i])
            close = close[(diff.max(axis=1) <= MAX_CELL_DIFF) & (diff.mean(axis=1) <= self.max_mean_diff)]
        return close
