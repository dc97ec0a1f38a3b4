"""M-RoPE positions: three coordinates (time, height, width) per token, computed on the host.

A text token has the same number in all three; an image's tokens share their start and count along their own axis;
the text after an image goes on from the largest coordinate used (get_rope_index of transformers' qwen2_vl).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int32

from lorgnette.types import PictureGrid


def positions(length: int, image_starts: Sequence[int], grids: Sequence[PictureGrid]) -> Int32[np.ndarray, "3 T"]:
    """Positions of a row of `length` tokens whose n-th image begins at image_starts[n] and has grids[n]."""
    found = np.empty((3, length), np.int32)
    at, position = 0, 0
    for start, grid in zip(image_starts, grids, strict=True):
        found[:, at:start] = np.arange(position, position + start - at, dtype=np.int32)
        position += start - at
        at = start + grid.tokens
        rows, columns = grid.h // grid.merge, grid.w // grid.merge
        found[:, start:at] = position + _within(grid.t, rows, columns)
        position += max(rows, columns)
    found[:, at:] = np.arange(position, position + length - at, dtype=np.int32)
    return found


@lru_cache(maxsize=4096)
def _within(t: int, rows: int, columns: int) -> Int32[np.ndarray, "3 P"]:
    return np.indices((t, rows, columns), dtype=np.int32).reshape(3, -1)
