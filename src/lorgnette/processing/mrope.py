"""M-RoPE positions: three coordinates (time, height, width) per token, computed on the host.

A text token has the same number in all three; an image's tokens share their start and count along their own axis;
the text after an image goes on from the largest coordinate used (get_rope_index of transformers' qwen2_vl).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int32

from lorgnette.types import ImageGrid

_LENGTH_STEP = 32
"""Rows are laid out in multiples of so many tokens, so that captions of about one length share them."""
_GridShape = tuple[int, int, int]
"""A picture's (time, rows, columns) in tokens."""


def compute_position_ids(
    length: int, image_starts: Sequence[int], grids: Sequence[ImageGrid]
) -> Int32[np.ndarray, "3 T"]:
    """Positions of a row of `length` tokens whose n-th image begins at image_starts[n] and has grids[n]. Rows that have
    the same before them are parts of one array, which nobody may write to."""
    shapes = tuple((grid.t, grid.h // grid.merge, grid.w // grid.merge) for grid in grids)
    return _compute_position_ids(math.ceil(length / _LENGTH_STEP) * _LENGTH_STEP, tuple(image_starts), shapes)[
        :, :length
    ]


@lru_cache(maxsize=1024)
def _compute_position_ids(
    length: int, starts: tuple[int, ...], shapes: tuple[_GridShape, ...]
) -> Int32[np.ndarray, "3 T"]:
    found = np.empty((3, length), np.int32)
    at, position = 0, 0
    for start, (t, rows, columns) in zip(starts, shapes, strict=True):
        found[:, at:start] = np.arange(position, position + start - at, dtype=np.int32)
        position += start - at
        at = start + t * rows * columns
        found[:, start:at] = position + np.indices((t, rows, columns), dtype=np.int32).reshape(3, -1)
        position += max(rows, columns)
    found[:, at:] = np.arange(position, position + length - at, dtype=np.int32)
    found.flags.writeable = False
    return found
