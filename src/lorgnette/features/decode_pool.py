"""Decodes images on threads or in processes, some groups ahead of the vision tower. Knows nothing about towers and
features."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from lorgnette.data import load_resized
from lorgnette.errors import LorgnetteError
from lorgnette.features.cache_folder import read_key
from lorgnette.features.decode_process import DecodeProcess
from lorgnette.io.cores import count_cores
from lorgnette.planning.limits import MAX_PATCHES_PER_CALL
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import ImageGrid

Pixels = UInt8[np.ndarray, "_ _ 3"]
PREFETCH_GROUPS = 16
_MAX_THREADS = 8
"""More threads hold Python's lock against the one that launches kernels."""
MIN_IMAGES_FOR_PROCESSES = 2048
"""Fewer are decoded before processes have paid for their start: 0.3 s of a core each."""
_MIN_PROCESSES = 4
_CORES_LEFT = 2
"""For the thread that launches kernels, and the one that writes features to the disk."""


class ImageContent(NamedTuple):
    """A loaded image: features from disk, pixels, or an error. key: its key in the disk cache, if there is one."""

    key: bytes | None
    content: Tensor | Pixels | LorgnetteError


class DecodePool:
    """Loads images on threads. wait_seconds: how long the consumer waited for them.

    Where there are many images, each thread lets a process of its own decode: Python's lock lets all threads together
    decode about half as many images a second as a vision tower takes.
    """

    def __init__(self, image_processor: ImageProcessor) -> None:
        self.wait_seconds = 0.0
        self._image_processor = image_processor
        self._uses_processes = False
        self._local, self._processes = threading.local(), list[DecodeProcess]()
        self._executor: ThreadPoolExecutor | None = None

    def start(
        self,
        groups: Sequence[Sequence[ImageGrid]],
        load: Callable[[ImageGrid], ImageContent],
        num_ranks: int = 1,
    ) -> Iterator[dict[ImageGrid, ImageContent]]:
        """Start loading at once. Returns the groups, each for one call of the vision tower.

        load: runs on the threads, and may call `decode`. num_ranks: processes of this machine that load at the same
        time.
        """
        self.close()
        num_cores = count_cores(num_ranks)
        num_processes = num_cores - _CORES_LEFT
        is_many = sum(map(len, groups)) >= MIN_IMAGES_FOR_PROCESSES
        self._uses_processes = is_many and num_processes >= _MIN_PROCESSES
        pool = ThreadPoolExecutor(num_processes if self._uses_processes else min(num_cores, _MAX_THREADS))
        self._executor, waiting = pool, iter(groups)
        pending: deque[dict[ImageGrid, Future[ImageContent]]] = deque()

        def submit(num_groups: int) -> None:
            for group in islice(waiting, num_groups):
                pending.append({grid: pool.submit(load, grid) for grid in group})

        def iterate() -> Iterator[dict[ImageGrid, ImageContent]]:
            while pending:
                start = time.perf_counter()
                group = {grid: future.result() for grid, future in pending.popleft().items()}
                self.wait_seconds += time.perf_counter() - start
                yield group
                submit(1)
            self.close()

        submit(PREFETCH_GROUPS)
        return iterate()

    def decode(self, grid: ImageGrid, *, has_key: bool) -> tuple[bytes | None, Pixels]:
        """(`read_key` if has_key, else None; the resized pixels), on a thread of `start`.

        Raises LorgnetteError for an image that cannot be decoded, DecodeProcessError for a process that has ended.
        """
        if self._uses_processes:
            return self._get_process().decode(grid, has_key=has_key)
        key = read_key(grid) if has_key else None
        return key, load_resized(grid.image.path, partial(self._image_processor.resize_to, grid))

    def close(self) -> None:
        """Drop what nobody has asked for yet, and end threads and processes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()
        self._executor, self._local = None, threading.local()
        self._processes.clear()

    def _get_process(self) -> DecodeProcess:
        """The process of this thread, which starts at the thread's first image."""
        if not hasattr(self._local, "process"):
            self._local.process = DecodeProcess(self._image_processor)
            self._processes.append(self._local.process)
        process: DecodeProcess = self._local.process
        return process


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
