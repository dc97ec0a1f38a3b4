"""Image features of those images that were asked for last: a server sees new images for as long as it runs."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lorgnette.data import load_resized
from lorgnette.errors import LorgnetteError
from lorgnette.features.decode_pool import Pixels, split_into_groups
from lorgnette.features.image_features import Embedder
from lorgnette.features.patchify import Patchifier
from lorgnette.planning.limits import MAX_PATCHES_PER_CALL
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import ImageGrid

MAX_BYTES = 2**30
"""A thousand images or more: one of 280×280 pixels has 0.3 MB at 2B's shapes in bf16."""


class FeatureLru:
    """Features by image, on the device of a frozen vision tower. Use it from one thread.

    num_bytes: of all that are kept, at most `max_bytes` between two calls of `encode` or the images of one call.
    """

    def __init__(self, tower: Embedder, image_processor: ImageProcessor, max_bytes: int = MAX_BYTES) -> None:
        """image_processor: any of the checkpoint's for `encode`, whose images are resized; `prepare` takes its size."""
        self._tower, self._image_processor, self._max_bytes = tower, image_processor, max_bytes
        self.device = tower.device
        self._patchifier = Patchifier(image_processor, tower.device, tower.dtype, max_patches=MAX_PATCHES_PER_CALL)
        self._features: OrderedDict[ImageGrid, Float[Tensor, "P C"]] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, grid: ImageGrid) -> bool:
        return grid in self._features

    @torch.no_grad()
    def encode(self, pixels: Mapping[ImageGrid, Pixels]) -> None:
        """Make the features of these images where they are not kept. Until the next call `gather` has all of them.

        The images that were asked for longest ago make way, never one of this call.
        """
        for grid in pixels:
            if grid in self._features:
                self._features.move_to_end(grid)
        for group in split_into_groups([grid for grid in pixels if grid not in self._features]):
            grids = sorted(group, key=lambda grid: (grid.h, grid.w))
            features = self._tower(grids, self._patchifier([pixels[grid] for grid in grids]))
            for grid, part in zip(grids, torch.split(features, [grid.num_tokens for grid in grids]), strict=True):
                # A copy: a view would keep the memory of its whole group.
                self._features[grid] = part if len(grids) == 1 else part.clone()
                self.num_bytes += part.nbytes
            self._evict(pixels)

    def prepare(self, grids: Iterable[ImageGrid]) -> dict[ImageGrid, LorgnetteError]:
        """Read the images' files, and `encode` them. Returns those that cannot be decoded, with the errors."""
        pixels, errors = dict[ImageGrid, Pixels](), dict[ImageGrid, LorgnetteError]()
        for grid in dict.fromkeys(grids):
            try:
                pixels[grid] = load_resized(grid.image.path, partial(self._image_processor.resize_to, grid))
            except LorgnetteError as error:
                errors[grid] = error
        self.encode(pixels)
        return errors

    def gather(self, grids: Sequence[ImageGrid]) -> Float[Tensor, "P C"]:
        """The features of the images, one after the other."""
        return torch.cat([self._features[grid] for grid in grids])

    def clear(self) -> None:
        """Free the memory of all features."""
        self._features.clear()
        self.num_bytes = 0

    def _evict(self, kept: Mapping[ImageGrid, Pixels]) -> None:
        while self.num_bytes > self._max_bytes and (oldest := next(iter(self._features))) not in kept:
            self.num_bytes -= self._features.pop(oldest).nbytes
