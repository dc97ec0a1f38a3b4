"""Image features: what the vision tower makes of a picture, [tokens, hidden].

    a picture's file ─ kept on disk? ─ yes ────────────────────────────▶ features
                                     └ no ─ decode, resize ─ bytes ─▶ device: patches ─ tower ─▶ features ─▶ disk

While the tower is frozen a picture has the same features in every step and every epoch, so each distinct picture is
put through it once, before training, or never where a run before did. With the tower open to training, features are
made anew in every pass. On CUDA nothing here waits until the device is done with what it was given last.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lorgnette.data import load_image as load_picture
from lorgnette.errors import LorgnetteError
from lorgnette.features.disk_cache import FeatureDiskCache, hash_image
from lorgnette.features.patchify import Patchifier
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import ImageGrid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pixels = UInt8[np.ndarray, "_ _ 3"]

MAX_PATCHES_PER_CALL = 16384
"""Patches put through the tower in one call: bounds its memory, and is plenty to fill a GPU."""
_PREFETCH_GROUPS = 16
_MAX_DECODE_THREADS = 8
"""Threads at the most: more of them keep Python from the one that launches, and 8 are as fast as a tower."""
_DEVICE_MEMORY_FRACTION = 0.25
"""Of the device's memory that is free when the first feature is made: what features may take of it."""


@runtime_checkable
class Embedder(Protocol):
    """A vision tower as this file needs it."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
        """Patches [N, D] of the pictures one after the other, on `device` in `dtype`, to features [P, C]."""


class HfVisionTower:
    """The vision tower of a model that transformers has loaded."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._visual = model.get_submodule("model.visual")
        parameter = next(self._visual.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def __call__(self, grids: Sequence[ImageGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "P C"]:
        shapes = torch.tensor([[grid.t, grid.h, grid.w] for grid in grids], device=self.device)
        features: Tensor = self._visual(patches, grid_thw=shapes).pooler_output
        return features


class LazyTower:
    """A tower that is made when the first picture needs it: where every picture's features are on disk, never."""

    def __init__(self, device: torch.device, dtype: torch.dtype, load: Callable[[], Embedder]) -> None:
        self.device, self.dtype, self._load = device, dtype, load
        self._pending: tuple[Future[Embedder], Sequence[Future[None]]] | None = None

    def __call__(self, grids: Sequence[ImageGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "P C"]:
        return self.tower(grids, patches)

    def start_loading(self, pool: Executor, ready: Sequence[Future[None]]) -> None:
        """Make it on a thread: a picture is going to need it. ready: what its first use waits for besides."""
        self._pending = pool.submit(self._load), ready

    def wait(self) -> None:
        """Until it is there. Raises LorgnetteError where it cannot be made."""
        _ = self.tower

    @cached_property
    def tower(self) -> Embedder:
        if self._pending is None:
            return self._load()
        (making, ready), self._pending = self._pending, None
        for one in ready:
            one.result()
        return making.result()

    def release(self) -> None:
        """Give the tower's memory back; a picture that comes later has it made again."""
        self.__dict__.pop("tower", None)


@dataclass(frozen=True, slots=True)
class _ImageContent:
    """A picture looked at: its features from disk, its pixels, or what is wrong with it; and its key in the store."""

    key: bytes | None
    content: Tensor | Pixels | LorgnetteError


class Features:
    """Features by picture: made once and kept (frozen tower), or made from kept pixels in every pass (live).

    device_bytes: how much of a CUDA device's memory they may take, the rest lies in pinned memory of the host; None
    is a share of what is free.
    """

    def __init__(
        self,
        tower: Embedder,
        rule: ImageProcessor,
        *,
        is_live: bool,
        disk_cache: FeatureDiskCache | None = None,
        device_bytes: int | None = None,
    ) -> None:
        self._tower, self._rule, self._is_live = tower, rule, is_live
        self._disk_cache = None if is_live else disk_cache
        self._device_bytes = device_bytes
        self._writer = ThreadPoolExecutor(1, "feature store")
        self._writes: list[Future[None]] = []
        cuda = tower.device.type == "cuda"
        self._write_stream = torch.cuda.Stream(tower.device) if cuda else None  # type: ignore[no-untyped-call]
        self._started: Iterator[dict[ImageGrid, _ImageContent]] | None = None
        self._pixels: dict[ImageGrid, Pixels] = {}
        self._features: dict[ImageGrid, Float[Tensor, "P C"]] = {}
        self.decode_wait_seconds = 0.0
        """How long `prepare` had nothing to do but wait for pictures to be decoded."""
        self.num_cached = 0
        """Pictures whose features were on disk."""

    @property
    def device(self) -> torch.device:
        return self._tower.device

    @cached_property
    def _patchify(self) -> Patchifier:
        return Patchifier(self._rule, self._tower.device, self._tower.dtype, max_patches=MAX_PATCHES_PER_CALL)

    def prepare(
        self, grids: Iterable[ImageGrid], *, on_progress: Callable[[int], None] = lambda count: None
    ) -> dict[ImageGrid, LorgnetteError]:
        """Decode the pictures on all cores and, for a frozen tower, make their features.

        seen(n) is called as n more pictures are done. Returns the pictures that could not be decoded, with why.
        """
        failed: dict[ImageGrid, LorgnetteError] = {}
        begun, self._started = self._started, None
        for group in begun or self._start_groups(self._filter_new(grids)):
            failed |= {grid: one.content for grid, one in group.items() if isinstance(one.content, LorgnetteError)}
            pixels = {grid: one.content for grid, one in group.items() if isinstance(one.content, np.ndarray)}
            if self._is_live:
                self._pixels |= pixels
            else:
                self._add_cached({grid: one.content for grid, one in group.items() if isinstance(one.content, Tensor)})
                self._encode(pixels, {grid: one.key for grid, one in group.items()})
            on_progress(len(group))
        return failed

    def start_decoding(self, grids: Iterable[ImageGrid]) -> None:
        """Begin to decode the pictures that `prepare` is asked for next, while the tower is on its way: later, the
        decoding threads would keep Python from those that launch what it computes."""
        self._started = self._start_groups(self._filter_new(grids))
        if self._disk_cache is None or self._disk_cache.is_empty:
            _ = self._patchify  # its memory is pinned before the device is busy

    def _filter_new(self, grids: Iterable[ImageGrid]) -> list[ImageGrid]:
        return [grid for grid in dict.fromkeys(grids) if grid not in self._pixels and grid not in self._features]

    @property
    def lazy_tower(self) -> LazyTower | None:
        """The tower, where it is not there yet and will be needed: no picture's features can be on disk."""
        needed = self._disk_cache is None or self._disk_cache.is_empty
        return self._tower if needed and isinstance(self._tower, LazyTower) else None

    def release_tower(self) -> None:
        """No more pictures are expected soon: give the tower's memory back, if it can be had again, and what brings
        pictures to it."""
        self.__dict__.pop("_patchify", None)
        if isinstance(self._tower, LazyTower):
            self._tower.release()

    def gather(self, grids: Sequence[ImageGrid]) -> Float[Tensor, "P C"]:
        """Features of the pictures one after the other, as PackedBatch.feature_rows counts them."""
        if self._is_live:
            return self._tower(grids, self._patchify([self._pixels[grid] for grid in grids]))
        return torch.cat([self._features[grid].to(self._tower.device, non_blocking=True) for grid in grids])

    def close(self) -> LorgnetteError | None:
        """Wait until what was made is on disk, and close the store. Returns what kept it from being written, if
        anything did: the run goes on without."""
        self._writer.shutdown()
        errors = [write.exception() for write in self._writes]
        if self._disk_cache is not None:
            self._disk_cache.close()
        for error in errors:
            if isinstance(error, LorgnetteError):
                return error
            if error is not None:
                raise error
        return None

    def _encode(self, pixels: Mapping[ImageGrid, Pixels], keys: Mapping[ImageGrid, bytes | None]) -> None:
        """Put pictures through the tower, those of one size side by side."""
        grids = sorted(pixels, key=lambda grid: (grid.h, grid.w))
        if not grids:
            return
        with torch.no_grad():
            features = self._tower(grids, self._patchify([pixels[grid] for grid in grids]))
        kept = self._keep_on_device_or_host(grids, features)
        if self._disk_cache is not None:
            self._write_to_disk(
                self._disk_cache, [keys[grid] for grid in grids], [grid.num_tokens for grid in grids], kept
            )

    def _add_cached(self, found: Mapping[ImageGrid, Float[Tensor, "_ C"]]) -> None:
        """Features from disk; on a CPU they stay where the file is mapped."""
        self.num_cached += len(found)
        if self._tower.device.type == "cpu":
            self._features |= found
        elif found:
            rows, width = sum(map(len, found.values())), next(iter(found.values())).shape[1]
            host = torch.empty(rows, width, dtype=self._tower.dtype, pin_memory=True)
            torch.cat(list(found.values()), out=host)
            self._keep_on_device_or_host(list(found), host.to(self._tower.device, non_blocking=True))

    def _keep_on_device_or_host(
        self, grids: Sequence[ImageGrid], features: Float[Tensor, "P C"]
    ) -> Float[Tensor, "P C"]:
        """On the device while they may take more of it, then on the host: where they now are."""
        if features.is_cuda:
            if self._device_bytes is None:
                self._device_bytes = int(_DEVICE_MEMORY_FRACTION * torch.cuda.mem_get_info(features.device)[0])
            self._device_bytes -= features.nbytes
            if self._device_bytes < 0:
                features = _copy_to_pinned(features)
        self._features |= dict(zip(grids, torch.split(features, [grid.num_tokens for grid in grids]), strict=True))
        return features

    def _write_to_disk(
        self, store: FeatureDiskCache, keys: Sequence[bytes | None], rows: Sequence[int], features: Float[Tensor, "P C"]
    ) -> None:
        """Behind the run's back: a thread waits until they are made, copies them to the host and appends them to the
        store, one group after the other."""
        made = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

        def append() -> None:
            if made is not None:
                made.synchronize()
            with torch.cuda.stream(self._write_stream):  # not behind the tower's next pictures
                host = features.cpu()
            parts = zip(keys, torch.split(host, list(rows)), strict=True)
            store.append({key: part for key, part in parts if key is not None})

        self._writes.append(self._writer.submit(append))

    def _start_groups(self, grids: Sequence[ImageGrid]) -> Iterator[dict[ImageGrid, _ImageContent]]:
        """Groups of pictures, decoded or found: the first begun at once, the next while the tower works on these."""
        pool, groups = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_DECODE_THREADS)), _split_into_groups(grids)
        waiting: deque[dict[ImageGrid, Future[_ImageContent]]] = deque()

        def begin(count: int) -> None:
            for group in islice(groups, count):
                waiting.append({grid: pool.submit(self._load_or_decode, grid) for grid in group})

        def seen() -> Iterator[dict[ImageGrid, _ImageContent]]:
            with pool:
                while waiting:
                    yield self._wait_for_group(waiting.popleft())
                    begin(1)

        begin(_PREFETCH_GROUPS)
        return seen()

    def _wait_for_group(self, group: dict[ImageGrid, "Future[_ImageContent]"]) -> dict[ImageGrid, _ImageContent]:
        begun = time.perf_counter()
        made = {grid: future.result() for grid, future in group.items()}
        self.decode_wait_seconds += time.perf_counter() - begun
        return made

    def _load_or_decode(self, grid: ImageGrid) -> _ImageContent:
        key = None
        try:
            if self._disk_cache is not None:
                key = hash_image(grid)
                found = self._disk_cache.get(key) if key is not None else None
                if found is not None and len(found) == grid.num_tokens:
                    return _ImageContent(key, found)
            return _ImageContent(key, self._rule.resize(load_picture(grid.image.path)))
        except LorgnetteError as error:
            return _ImageContent(key, error)


def _copy_to_pinned(features: Float[Tensor, "P C"]) -> Float[Tensor, "P C"]:
    """Into pinned memory, in the stream's own time."""
    return torch.empty(features.shape, dtype=features.dtype, pin_memory=True).copy_(features, non_blocking=True)


def _split_into_groups(grids: Sequence[ImageGrid]) -> Iterator[list[ImageGrid]]:
    """Groups as even as can be: for a smaller one, other kernels would be chosen and loaded."""
    total = sum(grid.h * grid.w for grid in grids)
    share = total / max(1, -(-total // MAX_PATCHES_PER_CALL))
    group: list[ImageGrid] = []
    size = done = cuts = 0
    for grid in grids:
        patches = grid.h * grid.w
        if group and (done >= share * (cuts + 1) or size + patches > MAX_PATCHES_PER_CALL):
            yield group
            group, size, cuts = [], 0, cuts + 1
        group.append(grid)
        size, done = size + patches, done + patches
    if group:
        yield group
