"""Qwen2-VL's M-RoPE positions: three coordinates (time, height, width) per token, on the host. Needs no torch.

A text token has the same number in all three. An image's tokens begin at one number and count along their own axes.
The text behind an image continues one above the largest coordinate so far (get_rope_index of transformers' Qwen2-VL).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int32

from lorgnette.types import ImageGrid

_LENGTH_STEP = 32
"""Lengths are rounded up to a multiple of it, so that captions of similar length share one cached array."""


def compute_position_ids(
    length: int, image_starts: Sequence[int], grids: Sequence[ImageGrid]
) -> Int32[np.ndarray, "3 T"]:
    """Positions of `length` tokens whose n-th image begins at image_starts[n] and has grids[n].

    The result is a read-only view of a cached array.
    """
    shapes = tuple((grid.t, grid.h // grid.merge, grid.w // grid.merge) for grid in grids)
    padded = math.ceil(length / _LENGTH_STEP) * _LENGTH_STEP
    return _compute_position_ids(padded, tuple(image_starts), shapes)[:, :length]


@lru_cache(maxsize=1024)
def _compute_position_ids(
    length: int, starts: tuple[int, ...], shapes: tuple[tuple[int, int, int], ...]
) -> Int32[np.ndarray, "3 T"]:
    """shapes: each image's (time, rows, columns) in tokens."""
    position_ids = np.empty((3, length), np.int32)
    index, position = 0, 0
    for start, (t, rows, columns) in zip(starts, shapes, strict=True):
        # Text before the image.
        position_ids[:, index:start] = np.arange(position, position + start - index, dtype=np.int32)
        position += start - index
        # The image.
        index = start + t * rows * columns
        position_ids[:, start:index] = position + np.indices((t, rows, columns), dtype=np.int32).reshape(3, -1)
        position += max(rows, columns)
    # Text behind the last image.
    position_ids[:, index:] = np.arange(position, position + length - index, dtype=np.int32)
    position_ids.flags.writeable = False
    return position_ids
