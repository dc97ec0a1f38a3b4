"""Keeps image features in memory: on the device while they fit into its share, then in pinned host memory."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lorgnette.planning.limits import FEATURE_MEMORY_FRACTION
from lorgnette.types import ImageGrid


class FeatureStorage:
    """Features [tokens, hidden] by image. Nothing here waits for the device.

    device_bytes: what they may use of a CUDA device; None: FEATURE_MEMORY_FRACTION of what is free at the first `add`.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, device_bytes: int | None = None) -> None:
        self._device, self._dtype, self._device_bytes = device, dtype, device_bytes
        self._features: dict[ImageGrid, Float[Tensor, "P C"]] = {}

    def __contains__(self, grid: ImageGrid) -> bool:
        return grid in self._features

    def add(self, grids: Sequence[ImageGrid], features: Float[Tensor, "P C"]) -> Float[Tensor, "P C"]:
        """Keep the features of these images, one after the other. Returns them where they are now."""
        if features.is_cuda:
            if self._device_bytes is None:
                self._device_bytes = int(FEATURE_MEMORY_FRACTION * torch.cuda.mem_get_info(features.device)[0])
            self._device_bytes -= features.nbytes
            if self._device_bytes < 0:
                # To pinned host memory, in the order of the stream.
                host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
                features = host.copy_(features, non_blocking=True)
        parts = torch.split(features, [grid.num_tokens for grid in grids])
        self._features |= dict(zip(grids, parts, strict=True))
        return features

    def add_mapped(self, features: Mapping[ImageGrid, Float[Tensor, "_ C"]]) -> None:
        """Keep features that are mapped from disk; on a CPU they stay there."""
        if self._device.type == "cpu":
            self._features |= features
        elif features:
            rows, width = sum(map(len, features.values())), next(iter(features.values())).shape[1]
            host = torch.empty(rows, width, dtype=self._dtype, pin_memory=True)
            torch.cat(list(features.values()), out=host)
            self.add(list(features), host.to(self._device, non_blocking=True))

    def gather(self, grids: Sequence[ImageGrid]) -> Float[Tensor, "P C"]:
        """The features of the images, one after the other, on the device."""
        return torch.cat([self._features[grid].to(self._device, non_blocking=True) for grid in grids])
