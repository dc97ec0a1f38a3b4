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

from lorgnette.data import load as load_picture
from lorgnette.errors import LorgnetteError
from lorgnette.features.disk_cache import Store, key_of
from lorgnette.features.patchify import Patchify
from lorgnette.processing.image_processor import PictureRule
from lorgnette.types import PictureGrid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pixels = UInt8[np.ndarray, "_ _ 3"]

PATCHES_AT_ONCE = 16384
"""Patches put through the tower in one call: bounds its memory, and is plenty to fill a GPU."""
_GROUPS_AHEAD = 16
_DECODERS = 8
"""Threads at the most: more of them keep Python from the one that launches, and 8 are as fast as a tower."""
_DEVICE_SHARE = 0.25
"""Of the device's memory that is free when the first feature is made: what features may take of it."""


@runtime_checkable
class Embedder(Protocol):
    """A vision tower as this file needs it."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, grids: Sequence[PictureGrid], patches: Tensor) -> Tensor:
        """Patches [N, D] of the pictures one after the other, on `device` in `dtype`, to features [P, C]."""


class Tower:
    """The vision tower of a model that transformers has loaded."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._visual = model.get_submodule("model.visual")
        parameter = next(self._visual.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def __call__(self, grids: Sequence[PictureGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "P C"]:
        shapes = torch.tensor([[grid.t, grid.h, grid.w] for grid in grids], device=self.device)
        features: Tensor = self._visual(patches, grid_thw=shapes).pooler_output
        return features


class Late:
    """A tower that is made when the first picture needs it: where every picture's features are on disk, never."""

    def __init__(self, device: torch.device, dtype: torch.dtype, make: Callable[[], Embedder]) -> None:
        self.device, self.dtype, self._make = device, dtype, make
        self._coming: tuple[Future[Embedder], Sequence[Future[None]]] | None = None

    def __call__(self, grids: Sequence[PictureGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "P C"]:
        return self.tower(grids, patches)

    def begin(self, pool: Executor, ready: Sequence[Future[None]]) -> None:
        """Make it on a thread: a picture is going to need it. ready: what its first use waits for besides."""
        self._coming = pool.submit(self._make), ready

    def wait(self) -> None:
        """Until it is there. Raises LorgnetteError where it cannot be made."""
        _ = self.tower

    @cached_property
    def tower(self) -> Embedder:
        if self._coming is None:
            return self._make()
        (making, ready), self._coming = self._coming, None
        for one in ready:
            one.result()
        return making.result()

    def forget(self) -> None:
        """Give the tower's memory back; a picture that comes later has it made again."""
        self.__dict__.pop("tower", None)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture looked at: its features from disk, its pixels, or what is wrong with it; and its key in the store."""

    key: bytes | None
    got: Tensor | Pixels | LorgnetteError


class Features:
    """Features by picture: made once and kept (frozen tower), or made from kept pixels in every pass (live).

    device_bytes: how much of a CUDA device's memory they may take, the rest lies in pinned memory of the host; None
    is a share of what is free.
    """

    def __init__(
        self,
        tower: Embedder,
        rule: PictureRule,
        *,
        live: bool,
        store: Store | None = None,
        device_bytes: int | None = None,
    ) -> None:
        self._tower, self._rule, self._live = tower, rule, live
        self._store = None if live else store
        self._device_bytes = device_bytes
        self._writer = ThreadPoolExecutor(1, "feature store")
        self._writes: list[Future[None]] = []
        cuda = tower.device.type == "cuda"
        self._writing = torch.cuda.Stream(tower.device) if cuda else None  # type: ignore[no-untyped-call]
        self._begun: Iterator[dict[PictureGrid, _Seen]] | None = None
        self._pixels: dict[PictureGrid, Pixels] = {}
        self._kept: dict[PictureGrid, Float[Tensor, "P C"]] = {}
        self.seconds_waited = 0.0
        """How long `prepare` had nothing to do but wait for pictures to be decoded."""
        self.found = 0
        """Pictures whose features were on disk."""

    @property
    def device(self) -> torch.device:
        return self._tower.device

    @cached_property
    def _patchify(self) -> Patchify:
        return Patchify(self._rule, self._tower.device, self._tower.dtype, patches=PATCHES_AT_ONCE)

    def prepare(
        self, grids: Iterable[PictureGrid], *, seen: Callable[[int], None] = lambda count: None
    ) -> dict[PictureGrid, LorgnetteError]:
        """Decode the pictures on all cores and, for a frozen tower, make their features.

        seen(n) is called as n more pictures are done. Returns the pictures that could not be decoded, with why.
        """
        failed: dict[PictureGrid, LorgnetteError] = {}
        begun, self._begun = self._begun, None
        for group in begun or self._looked_at(self._new(grids)):
            failed |= {grid: one.got for grid, one in group.items() if isinstance(one.got, LorgnetteError)}
            pixels = {grid: one.got for grid, one in group.items() if isinstance(one.got, np.ndarray)}
            if self._live:
                self._pixels |= pixels
            else:
                self._take({grid: one.got for grid, one in group.items() if isinstance(one.got, Tensor)})
                self._make(pixels, {grid: one.key for grid, one in group.items()})
            seen(len(group))
        return failed

    def begin(self, grids: Iterable[PictureGrid]) -> None:
        """Begin to decode the pictures that `prepare` is asked for next, while the tower is on its way: later, the
        decoding threads would keep Python from those that launch what it computes."""
        self._begun = self._looked_at(self._new(grids))
        if self._store is None or self._store.empty:
            _ = self._patchify  # its memory is pinned before the device is busy

    def _new(self, grids: Iterable[PictureGrid]) -> list[PictureGrid]:
        return [grid for grid in dict.fromkeys(grids) if grid not in self._pixels and grid not in self._kept]

    @property
    def late(self) -> Late | None:
        """The tower, where it is not there yet and will be needed: no picture's features can be on disk."""
        needed = self._store is None or self._store.empty
        return self._tower if needed and isinstance(self._tower, Late) else None

    def rest(self) -> None:
        """No more pictures are expected soon: give the tower's memory back, if it can be had again, and what brings
        pictures to it."""
        self.__dict__.pop("_patchify", None)
        if isinstance(self._tower, Late):
            self._tower.forget()

    def of(self, grids: Sequence[PictureGrid]) -> Float[Tensor, "P C"]:
        """Features of the pictures one after the other, as PackedBatch.feature_rows counts them."""
        if self._live:
            return self._tower(grids, self._patchify([self._pixels[grid] for grid in grids]))
        return torch.cat([self._kept[grid].to(self._tower.device, non_blocking=True) for grid in grids])

    def finish(self) -> LorgnetteError | None:
        """Wait until what was made is on disk, and close the store. Returns what kept it from being written, if
        anything did: the run goes on without."""
        self._writer.shutdown()
        errors = [write.exception() for write in self._writes]
        if self._store is not None:
            self._store.close()
        for error in errors:
            if isinstance(error, LorgnetteError):
                return error
            if error is not None:
                raise error
        return None

    def _make(self, pixels: Mapping[PictureGrid, Pixels], keys: Mapping[PictureGrid, bytes | None]) -> None:
        """Put pictures through the tower, those of one size side by side."""
        grids = sorted(pixels, key=lambda grid: (grid.h, grid.w))
        if not grids:
            return
        with torch.no_grad():
            features = self._tower(grids, self._patchify([pixels[grid] for grid in grids]))
        kept = self._keep(grids, features)
        if self._store is not None:
            self._write(self._store, [keys[grid] for grid in grids], [grid.tokens for grid in grids], kept)

    def _take(self, found: Mapping[PictureGrid, Float[Tensor, "_ C"]]) -> None:
        """Features from disk; on a CPU they stay where the file is mapped."""
        self.found += len(found)
        if self._tower.device.type == "cpu":
            self._kept |= found
        elif found:
            rows, width = sum(map(len, found.values())), next(iter(found.values())).shape[1]
            host = torch.empty(rows, width, dtype=self._tower.dtype, pin_memory=True)
            torch.cat(list(found.values()), out=host)
            self._keep(list(found), host.to(self._tower.device, non_blocking=True))

    def _keep(self, grids: Sequence[PictureGrid], features: Float[Tensor, "P C"]) -> Float[Tensor, "P C"]:
        """On the device while they may take more of it, then on the host: where they now are."""
        if features.is_cuda:
            if self._device_bytes is None:
                self._device_bytes = int(_DEVICE_SHARE * torch.cuda.mem_get_info(features.device)[0])
            self._device_bytes -= features.nbytes
            if self._device_bytes < 0:
                features = _to_host(features)
        self._kept |= dict(zip(grids, torch.split(features, [grid.tokens for grid in grids]), strict=True))
        return features

    def _write(
        self, store: Store, keys: Sequence[bytes | None], rows: Sequence[int], features: Float[Tensor, "P C"]
    ) -> None:
        """Behind the run's back: a thread waits until they are made, copies them to the host and appends them to the
        store, one group after the other."""
        made = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

        def append() -> None:
            if made is not None:
                made.synchronize()
            with torch.cuda.stream(self._writing):  # not behind the tower's next pictures
                host = features.cpu()
            parts = zip(keys, torch.split(host, list(rows)), strict=True)
            store.append({key: part for key, part in parts if key is not None})

        self._writes.append(self._writer.submit(append))

    def _looked_at(self, grids: Sequence[PictureGrid]) -> Iterator[dict[PictureGrid, _Seen]]:
        """Groups of pictures, decoded or found: the first begun at once, the next while the tower works on these."""
        pool, groups = ThreadPoolExecutor(min(os.cpu_count() or 1, _DECODERS)), _grouped(grids)
        waiting: deque[dict[PictureGrid, Future[_Seen]]] = deque()

        def begin(count: int) -> None:
            for group in islice(groups, count):
                waiting.append({grid: pool.submit(self._look, grid) for grid in group})

        def seen() -> Iterator[dict[PictureGrid, _Seen]]:
            with pool:
                while waiting:
                    yield self._awaited(waiting.popleft())
                    begin(1)

        begin(_GROUPS_AHEAD)
        return seen()

    def _awaited(self, group: dict[PictureGrid, "Future[_Seen]"]) -> dict[PictureGrid, _Seen]:
        begun = time.perf_counter()
        made = {grid: future.result() for grid, future in group.items()}
        self.seconds_waited += time.perf_counter() - begun
        return made

    def _look(self, grid: PictureGrid) -> _Seen:
        key = None
        try:
            if self._store is not None:
                key = key_of(grid)
                found = self._store.get(key) if key is not None else None
                if found is not None and len(found) == grid.tokens:
                    return _Seen(key, found)
            return _Seen(key, self._rule.pixels(load_picture(grid.picture.path)))
        except LorgnetteError as error:
            return _Seen(key, error)


def _to_host(features: Float[Tensor, "P C"]) -> Float[Tensor, "P C"]:
    """Into pinned memory, in the stream's own time."""
    return torch.empty(features.shape, dtype=features.dtype, pin_memory=True).copy_(features, non_blocking=True)


def _grouped(grids: Sequence[PictureGrid]) -> Iterator[list[PictureGrid]]:
    """Groups as even as can be: for a smaller one, other kernels would be chosen and loaded."""
    total = sum(grid.h * grid.w for grid in grids)
    share = total / max(1, -(-total // PATCHES_AT_ONCE))
    group: list[PictureGrid] = []
    size = done = cuts = 0
    for grid in grids:
        patches = grid.h * grid.w
        if group and (done >= share * (cuts + 1) or size + patches > PATCHES_AT_ONCE):
            yield group
            group, size, cuts = [], 0, cuts + 1
        group.append(grid)
        size, done = size + patches, done + patches
    if group:
        yield group
