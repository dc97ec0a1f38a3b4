"""Pixels to patches on the device: bytes travel there, an eighth of what normalised numbers would be.

Bit for bit what `PictureRule.patches` makes on the host: a byte has 256 values, so normalising is a look-up.
"""

from collections import deque
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lorgnette.processing.image_processor import ImageProcessor

_NUM_BUFFERS = 4


class _StagingBuffer:
    """Bytes on their way, on the host and on the device: memory that is pinned while a GPU works is long in coming."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.device = torch.empty(size, dtype=torch.uint8, device=device)
        self.consumed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        """Once the patches are made of it."""


class Patchifier:
    """Pictures of any sizes to one row of patches, in the tower's dtype on its device.

    On CUDA the host is ahead of the device by four calls at the most.
    """

    def __init__(self, rule: ImageProcessor, device: torch.device, dtype: torch.dtype, *, max_patches: int = 0) -> None:
        """patches: the most that are expected of a call."""
        self._rule, self._device = rule, device
        self._table = torch.from_numpy(rule.build_normalization_table().T.copy()).to(dtype).flatten().to(device)
        self._channels = (torch.arange(3, dtype=torch.int32) * 256).view(3, 1, 1).to(device)
        self._buffers: deque[_StagingBuffer] = deque()
        if device.type == "cuda":
            self._copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._buffers.extend(
                self._allocate_buffer(max_patches * rule.patch_size**2 * 3) for _ in range(_NUM_BUFFERS)
            )

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "N D"]:
        """Patches of the pictures one after the other. Best where pictures of one size stand together."""
        flat = self._copy_to_device(images)
        parts, at = [], 0
        try:
            for (height, width, _), run in groupby(picture.shape for picture in images):
                end = at + height * width * 3 * len(list(run))
                parts.append(self._extract_patches(flat[at:end].view(-1, height, width, 3)))
                at = end
        finally:
            if self._buffers:
                self._buffers[-1].consumed.record()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _allocate_buffer(self, size: int) -> _StagingBuffer:
        """Its memory is the copying stream's: what another has freed may still be read by what is under way there."""
        with torch.cuda.stream(self._copy_stream):
            return _StagingBuffer(size, self._device)

    def _copy_to_device(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[Tensor, " B"]:
        size = sum(picture.size for picture in images)
        if not self._buffers:
            return torch.from_numpy(np.concatenate([picture.reshape(-1) for picture in images]))
        slot = self._buffers[0]
        slot.consumed.synchronize()
        if size > len(slot.host):
            slot = self._allocate_buffer(size)
        self._buffers.popleft()
        self._buffers.append(slot)
        np.concatenate([picture.reshape(-1) for picture in images], out=slot.host[:size].numpy())
        with torch.cuda.stream(self._copy_stream):  # not behind what the tower has still to do
            slot.device[:size].copy_(slot.host[:size], non_blocking=True)
        torch.cuda.current_stream(self._device).wait_stream(self._copy_stream)
        return slot.device[:size]

    def _extract_patches(self, pixels: UInt8[Tensor, "K H W 3"]) -> Float[Tensor, "N D"]:
        patch, merge = self._rule.patch_size, self._rule.merge_size
        K, H, W, _ = pixels.shape
        rows, columns = H // (patch * merge), W // (patch * merge)
        blocks = pixels.view(K, rows, merge, patch, columns, merge, patch, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
        values = blocks.reshape(-1, 3, 1, patch * patch).int() + self._channels
        numbers = self._table.index_select(0, values.flatten()).view(values.shape)
        return numbers.expand(-1, -1, self._rule.temporal_patch_size, -1).flatten(1)
