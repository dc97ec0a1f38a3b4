"""Image features, [tokens, levels · hidden]: the vision tower's output for an image.

    image file ─ in the disk cache? ─ yes ─────────────────────────────────────────▶ features
                                    └ no ─ decode, resize ─ pixels ─▶ device: patches ─ tower ─▶ features ─▶ disk cache

With several ranks each makes the features of its share of the images, and all read all from the disk cache: its file is
in memory once for all ranks of a machine.

A row holds the merger's output and every level of deepstack side by side; most families have none of these levels.
With a frozen tower an image has the same features in every step, so each distinct image is encoded once before
training, or never if an earlier run did it. A trained tower computes features in every micro-batch. On CUDA nothing
here waits until the device has finished its last work.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lorgnette.device import PINNED_PIECE_BYTES
from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError
from lorgnette.features.cache_folder import build_key, read_file_version, read_key
from lorgnette.features.decode_pool import DecodePool, ImageContent, Pixels, split_into_groups
from lorgnette.features.decode_process import DecodeProcessError
from lorgnette.features.disk_cache import FeatureDiskCache, StoredFeatures, find_damage, read_all_into
from lorgnette.features.patchify import Patchifier
from lorgnette.planning.limits import FEATURE_MEMORY_FRACTION, MAX_PATCHES_PER_CALL
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.processing.rank_shares import split_between_ranks
from lorgnette.types import ImageGrid

_MAX_PENDING_WRITES = 8
"""Calls of the tower whose features may wait on the device for the disk: their memory is not planned."""

_BLOCK_BYTES = PINNED_PIECE_BYTES
"""Features that are read from the disk cache together."""
_NUM_BLOCKS = 4
"""Blocks in memory at a time, and threads that check them."""

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@runtime_checkable
class Embedder(Protocol):
    """The interface of a vision tower."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
        """Patches [N, D] of the images, one after the other, on `device` in `dtype`, to features [P, C]."""


class HfVisionTower:
    """The vision tower of transformers' model. In float32 it computes in float32, whatever surrounds it."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._visual = model.get_submodule("model.visual")
        parameter = next(self._visual.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def __call__(self, grids: Sequence[ImageGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "P C"]:
        grid_thw = torch.tensor([[grid.t, grid.h, grid.w] for grid in grids], device=self.device)
        with torch.autocast(self.device.type, enabled=False) if self.dtype == torch.float32 else nullcontext():
            output = self._visual(patches, grid_thw=grid_thw)
        return torch.cat([output.pooler_output, *(getattr(output, "deepstack_features", None) or ())], dim=1)


class LazyTower:
    """A vision tower that is loaded when the first image needs it: never, if all features are in the disk cache."""

    def __init__(self, device: torch.device, dtype: torch.dtype, load: Callable[[], Embedder]) -> None:
        self.device, self.dtype, self._load = device, dtype, load
        self._pending: tuple[Future[Embedder], Sequence[Future[None]]] | None = None

    def __call__(self, grids: Sequence[ImageGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "P C"]:
        return self.tower(grids, patches)

    def start_loading(self, pool: Executor, warmups: Sequence[Future[None]]) -> None:
        """Load it on a thread. warmups: what its first use waits for as well."""
        self._pending = pool.submit(self._load), warmups

    @cached_property
    def tower(self) -> Embedder:
        """Waits until it is loaded. Raises LorgnetteError if it cannot be loaded."""
        if self._pending is None:
            return self._load()
        (tower, warmups), self._pending = self._pending, None
        for warmup in warmups:
            warmup.result()
        return tower.result()

    def release(self) -> None:
        """Free the tower's memory. A later image loads it again."""
        self.__dict__.pop("tower", None)


class FeatureStorage:
    """Features by image: on the device while they fit into its share, then in pinned host memory or mapped from disk.

    Nothing here waits for the device.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, device_bytes: int | None = None) -> None:
        """device_bytes: the device's share, taken at once; None: FEATURE_MEMORY_FRACTION of what is free at the first
        `add`, taken as needed."""
        self._device, self._dtype = device, dtype
        self._device_bytes = device_bytes
        # In one piece: features that are kept in pieces of what a tower used would keep all of that from others.
        self._free = None if device_bytes is None else torch.empty(device_bytes, dtype=torch.uint8, device=device)
        self._features: dict[ImageGrid, Float[Tensor, "P C"]] = {}
        self._mapped: dict[ImageGrid, Float[Tensor, "P C"] | StoredFeatures] = {}

    def __contains__(self, grid: ImageGrid) -> bool:
        return grid in self._features or grid in self._mapped

    def add(
        self, grids: Sequence[ImageGrid], features: Float[Tensor, "P C"], *, is_on_disk: bool = False
    ) -> Float[Tensor, "P C"]:
        """Keep the features of these images, one after the other. Returns them where they are now.

        is_on_disk: those that do not fit on the device are not kept, because they will be mapped from disk.
        """
        if features.is_cuda:
            if self._take_share(features.nbytes):
                features = self._copy_to_share(features)
            elif is_on_disk:
                return features
            else:
                # To pinned host memory, in the order of the stream.
                host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
                features = host.copy_(features, non_blocking=True)
        self._keep(grids, features)
        return features

    def add_from_disk(
        self, stored: Mapping[ImageGrid, StoredFeatures], *, on_progress: Callable[[int], None] = lambda count: None
    ) -> list[ImageGrid]:
        """Read features from the disk and keep them. Returns the images whose features are damaged, which have none.

        They are read in blocks, in the order of the file: a few calls for all of them instead of some for each image,
        because each call may wait for other threads to leave Python's lock. What cannot be read is damaged.
        on_progress: as of `Features.prepare`.
        """
        damaged, unreadable = list[ImageGrid](), list[ImageGrid]()
        checks: deque[tuple[list[ImageGrid], Future[list[int]]]] = deque()

        def finish_check() -> None:
            grids, check = checks.popleft()
            numbers = check.result()
            damaged.extend(grids[i] for i in numbers)
            on_progress(len(grids) - len(numbers))

        with ThreadPoolExecutor(_NUM_BLOCKS, "check features") as pool:
            for grids in _split_into_blocks(stored):
                if len(checks) == _NUM_BLOCKS:
                    finish_check()
                places = [stored[grid] for grid in grids]
                shape = sum(place.num_rows for place in places), places[0].width
                host = torch.empty(shape, dtype=self._dtype, pin_memory=self._device.type == "cuda")
                content = host.view(torch.uint8).numpy().reshape(-1)
                try:
                    read_all_into(places, content)
                except LorgnetteError:  # the file became shorter, or its disk is broken
                    unreadable += grids
                    continue
                checks.append((grids, pool.submit(find_damage, places, content)))
                self._keep(grids, self._copy_to_share(host) if self._take_share(host.nbytes) else host)
            while checks:
                finish_check()
        for grid in damaged:
            del self._features[grid]
        return damaged + unreadable

    def add_mapped(self, features: Mapping[ImageGrid, Float[Tensor, "_ C"]]) -> None:
        """Keep features that are mapped from disk; without CUDA they stay there."""
        if self._device.type != "cuda":
            self._features |= features
        elif features:
            self.add(list(features), self._copy_to_device(list(features.values())))

    def map(self, features: Mapping[ImageGrid, Float[Tensor, "_ C"]]) -> None:
        """Leave features where they are mapped from disk. On CUDA `gather` copies them, and keeps what fits."""
        if self._device.type == "cuda":
            self._mapped |= features
        else:
            self._features |= features

    def leave_on_disk(self, features: Mapping[ImageGrid, StoredFeatures]) -> None:
        """Read features when `gather` asks for them, on CUDA."""
        self._mapped |= features

    def gather(self, grids: Sequence[ImageGrid]) -> Float[Tensor, "P C"]:
        """The features of the images, one after the other, on the device."""
        is_cuda = self._device.type == "cuda"  # MPS may read the source after a copy that does not wait
        parts = {grid: self._features[grid] for grid in grids if grid in self._features}
        if mapped := [grid for grid in dict.fromkeys(grids) if grid not in parts]:
            rows = self._copy_to_device([self._mapped[grid] for grid in mapped])
            rows = self.add(mapped, rows, is_on_disk=True)
            parts |= dict(zip(mapped, torch.split(rows, [grid.num_tokens for grid in mapped]), strict=True))
        return torch.cat([parts[grid].to(self._device, non_blocking=is_cuda) for grid in grids])

    def _take_share(self, num_bytes: int) -> bool:
        """Whether so much of the device's share is left; it is taken then."""
        if self._device_bytes is None:
            self._device_bytes = int(FEATURE_MEMORY_FRACTION * torch.cuda.mem_get_info(self._device)[0])
        if num_bytes > self._device_bytes:
            return False
        self._device_bytes -= num_bytes
        return True

    def _copy_to_share(self, features: Float[Tensor, "P C"]) -> Float[Tensor, "P C"]:
        """Features on the device, in the share's one piece if there is one, once `_take_share` has taken their bytes.

        The memory of a source on the host must be pinned, and may be used again when the device has copied it.
        """
        if self._free is None:
            return features.to(self._device, non_blocking=True)
        kept, self._free = self._free[: features.nbytes], self._free[features.nbytes :]
        return kept.view(features.dtype).view(features.shape).copy_(features, non_blocking=True)

    def _keep(self, grids: Sequence[ImageGrid], features: Float[Tensor, "P C"]) -> None:
        parts = torch.split(features, [grid.num_tokens for grid in grids])
        self._features |= dict(zip(grids, parts, strict=True))

    def _copy_to_device(self, parts: Sequence[Float[Tensor, "_ C"] | StoredFeatures]) -> Float[Tensor, "P C"]:
        """Through pinned memory that torch reuses. The host waits for nothing but the disk."""
        lengths = [part.num_rows if isinstance(part, StoredFeatures) else len(part) for part in parts]
        width = parts[0].width if isinstance(parts[0], StoredFeatures) else parts[0].shape[1]
        host = torch.empty(sum(lengths), width, dtype=self._dtype, pin_memory=True)
        for part, rows in zip(parts, torch.split(host, lengths), strict=True):
            if isinstance(part, StoredFeatures):
                part.read_into(rows.view(torch.uint8).numpy().reshape(-1))
            else:
                rows.copy_(part)
        return host.to(self._device, non_blocking=True)


def _split_into_blocks(stored: Mapping[ImageGrid, StoredFeatures]) -> Iterator[list[ImageGrid]]:
    """The images in the order of the file; a block has at most _BLOCK_BYTES unless one image has more."""
    block, size = list[ImageGrid](), 0
    for grid in sorted(stored, key=lambda grid: stored[grid].offset):
        if block and size + stored[grid].num_bytes > _BLOCK_BYTES:
            yield block
            block, size = [], 0
        block.append(grid)
        size += stored[grid].num_bytes
    if block:
        yield block


class _PendingImages(NamedTuple):
    """The images of the next `Features.prepare`. stored: those on the disk that are read in blocks; groups: the others,
    which threads load."""

    stored: Mapping[ImageGrid, StoredFeatures]
    groups: Iterator[dict[ImageGrid, ImageContent]]


class Features:
    """Features by image: encoded once and kept (frozen tower), or from kept pixels in every micro-batch (is_live).

    num_cached: images whose features this rank found in the disk cache. num_unshared: those of other ranks that it made
    again, because the disk cache did not take them.
    """

    def __init__(
        self,
        tower: Embedder,
        image_processor: ImageProcessor,
        *,
        is_live: bool,
        disk_cache: FeatureDiskCache | None = None,
    ) -> None:
        self._tower, self.image_processor, self._is_live = tower, image_processor, is_live
        self.device = tower.device
        self._disk_cache = None if is_live else disk_cache
        self._writer, self._writes = ThreadPoolExecutor(1, "feature disk cache"), list[Future[None]]()
        self._reads_blocks = is_cuda = tower.device.type == "cuda"  # without CUDA features stay mapped from the file
        self._write_stream = torch.cuda.Stream(tower.device) if is_cuda else None  # type: ignore[no-untyped-call]
        self.decode_pool = DecodePool(image_processor)
        self._pending: _PendingImages | None = None
        self._pixels: dict[ImageGrid, Pixels] = {}
        self._storage = FeatureStorage(tower.device, tower.dtype)
        self._keys: dict[ImageGrid, bytes] = {}
        self._read_error: LorgnetteError | None = None
        self.num_cached, self.num_unshared = 0, 0

    def __contains__(self, grid: ImageGrid) -> bool:
        """Whether `gather` has the image."""
        return grid in self._pixels or grid in self._storage

    @cached_property
    def _patchifier(self) -> Patchifier:
        dtype, size = self._tower.dtype, MAX_PATCHES_PER_CALL
        return Patchifier(self.image_processor, self.device, dtype, max_patches=size)

    @property
    def lazy_tower(self) -> LazyTower | None:
        """The tower if it is not loaded yet and will be needed, since the disk cache is empty."""
        is_needed = self._disk_cache is None or self._disk_cache.is_empty
        return self._tower if is_needed and isinstance(self._tower, LazyTower) else None

    def start_decoding(
        self, grids: Iterable[ImageGrid], world: World = World(), digests: Mapping[Path, bytes] | None = None
    ) -> None:
        """Start decoding the images of the next `prepare`, while the tower is loaded.

        Later, the decoding threads would hold Python's lock against the thread that launches the tower's kernels.
        digests: image file → sha256, of files that were read a moment ago. Without it the threads read them to find
        their features on the disk.
        """
        images = self._select_share(grids, world)
        stored = self._find_on_disk(images, digests) if digests and world.size == 1 else {}
        self._pending = _PendingImages(stored, self._start_decoding(images, world.local_size, stored))

    def prepare(
        self,
        grids: Iterable[ImageGrid],
        *,
        on_progress: Callable[[int], None] = lambda count: None,
        world: World = World(),
    ) -> dict[ImageGrid, LorgnetteError]:
        """Decode the images on threads and, with a frozen tower, encode them.

        world: every rank calls this with the same images, and makes its share of them. on_progress(n) is called after n
        more images of this rank. Returns the images that cannot be decoded, on any rank, with the errors.
        """
        images = list(dict.fromkeys(grids))
        errors = self._prepare_share(self._select_share(images, world), on_progress, world)
        return errors if world.size == 1 else self._exchange(images, errors, world)

    def load_groups(
        self, groups: Sequence[Sequence[ImageGrid]], pool: DecodePool, num_ranks: int = 1
    ) -> Iterator[dict[ImageGrid, ImageContent]]:
        """Start loading images, for `add_group`. num_ranks: as of `DecodePool.start`."""
        loading = pool.start(groups, self._choose_loader(pool), num_ranks)
        if self._disk_cache is None or self._disk_cache.is_empty:
            _ = self._patchifier  # pins its memory before the device is busy
        return loading

    def add_group(
        self, group: Mapping[ImageGrid, ImageContent], *, is_shared: bool = False
    ) -> dict[ImageGrid, LorgnetteError]:
        """Keep the group's features, those without any in one call of the tower; with a trained tower, its pixels.

        is_shared: other ranks will read them from the disk cache. Returns the images that cannot be decoded.
        """
        contents = {grid: image.content for grid, image in group.items()}
        pixels = {grid: content for grid, content in contents.items() if isinstance(content, np.ndarray)}
        keys = {grid: image.key for grid, image in group.items() if image.key is not None}
        if self._is_live:
            self._pixels |= pixels
        else:
            cached = {grid: content for grid, content in contents.items() if isinstance(content, Tensor)}
            self.num_cached += len(cached)
            (self._storage.map if is_shared else self._storage.add_mapped)(cached)
            if pixels:
                self._encode(pixels, keys, is_shared=is_shared)
        if is_shared:
            self._keys |= keys
        return {grid: content for grid, content in contents.items() if isinstance(content, LorgnetteError)}

    def release_tower(self) -> None:
        """Free the memory of the tower and of the patches, if no more images are expected soon."""
        self.__dict__.pop("_patchifier", None)
        if isinstance(self._tower, LazyTower):
            self._tower.release()

    def limit_device_bytes(self, size: int) -> None:
        """Keep features of at most `size` bytes on a CUDA device. Call it before the first image is encoded."""
        if self.device.type == "cuda":
            self._storage = FeatureStorage(self._tower.device, self._tower.dtype, size)

    def forget_images(self) -> None:
        """Forget all features and pixels: the images' files may change."""
        self._pixels, self._storage = {}, FeatureStorage(self._tower.device, self._tower.dtype)

    def gather(self, grids: Sequence[ImageGrid]) -> Float[Tensor, "P C"]:
        """Features of the images, one after the other, as PackedBatch.feature_indices counts them."""
        if self._is_live:
            return self._tower(grids, self._patchifier([self._pixels[grid] for grid in grids]))
        return self._storage.gather(grids)

    def close(self) -> LorgnetteError | None:
        """Wait until the features are on disk, and close the cache. Returns the error if they cannot be written or
        read."""
        self.decode_pool.close()
        self._writer.shutdown()
        if self._disk_cache is not None:
            self._disk_cache.close()
        for error in filter(None, (self._read_error, *(write.exception() for write in self._writes))):
            if isinstance(error, LorgnetteError):
                return error
            raise error
        return None

    def _select_share(self, grids: Iterable[ImageGrid], world: World) -> list[ImageGrid]:
        """The images that this rank makes: about as many patches as each rank of its machine. All, if nothing can be
        exchanged through the disk cache."""
        images = list(dict.fromkeys(grids))
        if world.size == 1 or self._disk_cache is None:
            return images
        shares = split_between_ranks([grid.h * grid.w for grid in images], world.local_size)
        return [images[i] for i in shares[world.local_rank]]

    def _find_on_disk(
        self, images: Iterable[ImageGrid], digests: Mapping[Path, bytes]
    ) -> dict[ImageGrid, StoredFeatures]:
        """The new images whose features are on the disk and are read in blocks."""
        disk_cache, stored = self._disk_cache, dict[ImageGrid, StoredFeatures]()
        if self._reads_blocks and disk_cache is not None and not disk_cache.is_empty:
            for grid in images:
                if grid in self or (digest := digests.get(grid.image.path)) is None:
                    continue
                place = disk_cache.locate(build_key(grid, digest))
                if place is not None and place.num_rows == grid.num_tokens:
                    stored[grid] = place
        return stored

    def _start_decoding(
        self, grids: Iterable[ImageGrid], num_ranks: int, stored: Collection[ImageGrid] = ()
    ) -> Iterator[dict[ImageGrid, ImageContent]]:
        """stored: images that are not decoded. The others are in the groups in which they would be beside these."""
        new = [grid for grid in dict.fromkeys(grids) if grid not in self]
        groups = [[grid for grid in group if grid not in stored] for group in split_into_groups(new)]
        groups = [group for group in groups if group]
        return self.load_groups(groups, self.decode_pool, num_ranks) if groups else iter(())

    def _prepare_share(
        self, grids: Iterable[ImageGrid], on_progress: Callable[[int], None], world: World
    ) -> dict[ImageGrid, LorgnetteError]:
        """Decode and encode these images; those that cannot be decoded, with the errors."""
        errors: dict[ImageGrid, LorgnetteError] = {}
        pending, self._pending = self._pending, None
        if pending is None:
            pending = _PendingImages({}, self._start_decoding(grids, world.local_size))
        damaged = self._add_from_disk(pending.stored, on_progress)
        is_shared = world.size > 1 and self._disk_cache is not None

        def load() -> Iterator[dict[ImageGrid, ImageContent]]:
            yield from pending.groups
            yield from self._start_decoding(damaged, world.local_size)

        for group in load():
            errors |= self.add_group(group, is_shared=is_shared)
            on_progress(len(group))
        return errors

    def _add_from_disk(
        self, stored: Mapping[ImageGrid, StoredFeatures], on_progress: Callable[[int], None]
    ) -> list[ImageGrid]:
        """Read these features. Returns the images whose features are damaged."""
        damaged = self._storage.add_from_disk(stored, on_progress=on_progress)
        self.num_cached += len(stored) - len(damaged)
        if self._disk_cache is not None:
            for grid in damaged:
                self._disk_cache.forget(stored[grid].key)
        return damaged

    def _exchange(
        self, images: Sequence[ImageGrid], errors: Mapping[ImageGrid, LorgnetteError], world: World
    ) -> dict[ImageGrid, LorgnetteError]:
        """Wait for all ranks, map the features that the others have stored, and make those that nobody could store.

        Returns the errors of all ranks, in the order of the images: no rank may train with an image that another lacks.
        """
        disk_cache, numbers = self._disk_cache, {grid: i for i, grid in enumerate(images)}
        wait(self._writes)  # `close` tells of their errors
        own_errors = {numbers[grid]: error for grid, error in errors.items()}
        own_keys = {numbers[grid]: key for grid, key in self._keys.items() if grid in numbers}
        all_errors, all_keys = dict[int, LorgnetteError](), dict[int, bytes]()
        for rank_errors, keys in world.gather_objects((own_errors, own_keys)):
            all_errors = rank_errors | all_errors  # of the lowest rank
            all_keys |= keys
        self._keys.clear()
        failed = {images[i]: all_errors[i] for i in sorted(all_errors)}

        if disk_cache is not None:
            try:
                disk_cache.refresh()
            except LorgnetteError as error:  # this rank makes all images
                self._read_error = error
            is_checked = world.size == world.local_size  # not over the network, if machines share the folder
            if is_checked and self.device.type == "cuda":
                places = {images[i]: disk_cache.locate(key) for i, key in all_keys.items()}
                self._storage.leave_on_disk({grid: place for grid, place in places.items() if place is not None})
            else:
                stored = {images[i]: disk_cache.get(key, is_checked=is_checked) for i, key in all_keys.items()}
                self._storage.map({grid: rows for grid, rows in stored.items() if rows is not None})
        world.barrier()  # all have mapped what is in a temporary folder
        if disk_cache is not None and disk_cache.is_temporary:
            if world.is_local_main:
                disk_cache.remove()
            disk_cache.close()
            self._disk_cache = None
        missing = [grid for grid in images if grid not in failed and grid not in self]
        self.num_unshared += len(missing)
        for own_error in self._prepare_share(missing, lambda count: None, World()).values():
            raise own_error
        return failed

    def _choose_loader(self, pool: DecodePool) -> Callable[[ImageGrid], ImageContent]:
        """What loads an image on a thread: its features from the disk cache, if any image has them there, else its
        pixels."""
        disk_cache = self._disk_cache
        is_empty = disk_cache is None or disk_cache.is_empty

        def load(grid: ImageGrid) -> ImageContent:
            key, version = None, read_file_version(grid.image.path)
            try:
                if disk_cache is not None and not is_empty and (key := read_key(grid)) is not None:
                    features = disk_cache.get(key)
                    if features is not None and len(features) == grid.num_tokens:
                        return ImageContent(key, features)
                new_key, pixels = pool.decode(grid, has_key=disk_cache is not None and is_empty)
                # The pixels of a file that changes meanwhile may not be those of its key, and are not stored.
                is_unchanged = read_file_version(grid.image.path) == version
                return ImageContent((key or new_key) if is_unchanged else None, pixels)
            except DecodeProcessError:
                raise
            except LorgnetteError as error:
                return ImageContent(key, error)

        return load

    def _encode(self, pixels: Mapping[ImageGrid, Pixels], keys: Mapping[ImageGrid, bytes], *, is_shared: bool) -> None:
        """Encode a group in one call of the tower, with images of one size side by side.

        is_shared: other ranks wait for the features, but not until they are on the disk.
        """
        grids = sorted(pixels, key=lambda grid: (grid.h, grid.w))
        with torch.no_grad():
            features = self._tower(grids, self._patchifier([pixels[grid] for grid in grids]))
        features, disk_cache = self._storage.add(grids, features, is_on_disk=is_shared), self._disk_cache
        if disk_cache is None:
            return

        # In the background: wait until the features are computed, copy them to the host, append them to the cache.
        computed = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

        def append() -> None:
            if computed is not None:
                computed.synchronize()
            with torch.cuda.stream(self._write_stream):  # not behind the tower's next images
                host = features.cpu()
            parts = zip(grids, torch.split(host, [grid.num_tokens for grid in grids]), strict=True)
            disk_cache.append({keys[grid]: part for grid, part in parts if grid in keys}, is_synced=not is_shared)

        self._writes.append(self._writer.submit(append))
        if is_shared:  # features that are not kept wait on the device
            wait(self._writes[:-_MAX_PENDING_WRITES][-1:])
