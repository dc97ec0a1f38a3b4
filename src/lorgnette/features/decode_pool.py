"""Decodes images on threads, some groups ahead of the vision tower. Knows nothing about towers and features."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from lorgnette.errors import LorgnetteError
from lorgnette.planning.limits import MAX_PATCHES_PER_CALL
from lorgnette.types import ImageGrid

Pixels = UInt8[np.ndarray, "_ _ 3"]
_PREFETCH_GROUPS = 16
_MAX_THREADS = 8
"""More threads hold Python's lock against the one that launches kernels, and 8 are as fast as a tower."""


class ImageContent(NamedTuple):
    """A loaded image: features from disk, pixels, or an error. key: its key in the disk cache, if there is one."""

    key: bytes | None
    content: Tensor | Pixels | LorgnetteError


class DecodePool:
    """Loads images on threads. wait_seconds: how long the consumer waited for them."""

    def __init__(self) -> None:
        self.wait_seconds = 0.0

    def start(
        self, grids: Sequence[ImageGrid], load: Callable[[ImageGrid], ImageContent], num_ranks: int = 1
    ) -> Iterator[dict[ImageGrid, ImageContent]]:
        """Start loading at once. Returns the groups, each for one call of the vision tower.

        num_ranks: processes of this machine that load at the same time.
        """
        num_threads = min(max((os.cpu_count() or 1) // num_ranks, 1), _MAX_THREADS)
        pool, groups = ThreadPoolExecutor(num_threads), split_into_groups(grids)
        pending: deque[dict[ImageGrid, Future[ImageContent]]] = deque()

        def submit(num_groups: int) -> None:
            for group in islice(groups, num_groups):
                pending.append({grid: pool.submit(load, grid) for grid in group})

        def iterate() -> Iterator[dict[ImageGrid, ImageContent]]:
            with pool:
                while pending:
                    start = time.perf_counter()
                    group = {grid: future.result() for grid, future in pending.popleft().items()}
                    self.wait_seconds += time.perf_counter() - start
                    yield group
                    submit(1)

        submit(_PREFETCH_GROUPS)
        return iterate()


def split_into_groups(grids: Sequence[ImageGrid]) -> Iterator[list[ImageGrid]]:
    """Groups of similar size: a smaller last group would select and load other kernels."""
    total = sum(grid.h * grid.w for grid in grids)
    target = total / max(1, -(-total // MAX_PATCHES_PER_CALL))
    group: list[ImageGrid] = []
    group_patches = done = num_groups = 0
    for grid in grids:
        patches = grid.h * grid.w
        if group and (done >= target * (num_groups + 1) or group_patches + patches > MAX_PATCHES_PER_CALL):
            yield group
            group, group_patches, num_groups = [], 0, num_groups + 1
        group.append(grid)
        group_patches, done = group_patches + patches, done + patches
    if group:
        yield group
