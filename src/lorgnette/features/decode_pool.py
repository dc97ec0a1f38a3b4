"""Decodes images on threads, some groups ahead of the vision tower.

Knows nothing about towers and features.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

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


@dataclass(frozen=True, slots=True)
class ImageContent:
    """A loaded image: features from disk, pixels, or an error. key: its key in the disk cache, if there is one."""

    key: bytes | None
    content: Tensor | Pixels | LorgnetteError


class DecodePool:
    """Loads images on threads. wait_seconds: how long the consumer waited for them."""

    def __init__(self) -> None:
        self.wait_seconds = 0.0

    def start(
        self, grids: Sequence[ImageGrid], load: Callable[[ImageGrid], ImageContent]
    ) -> Iterator[dict[ImageGrid, ImageContent]]:
        """Start loading at once. Returns the groups, each for one call of the vision tower."""
        pool, groups = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)), _split_into_groups(grids)
        pending: deque[dict[ImageGrid, Future[ImageContent]]] = deque()

        def submit(num_groups: int) -> None:
            for group in islice(groups, num_groups):
                pending.append({grid: pool.submit(load, grid) for grid in group})

        def iterate() -> Iterator[dict[ImageGrid, ImageContent]]:
            with pool:
                while pending:
                    yield self._wait(pending.popleft())
                    submit(1)

        submit(_PREFETCH_GROUPS)
        return iterate()

    def _wait(self, group: dict[ImageGrid, "Future[ImageContent]"]) -> dict[ImageGrid, ImageContent]:
        start = time.perf_counter()
        contents = {grid: future.result() for grid, future in group.items()}
        self.wait_seconds += time.perf_counter() - start
        return contents


def _split_into_groups(grids: Sequence[ImageGrid]) -> Iterator[list[ImageGrid]]:
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
