"""Turns pixels into patches on the device. Bytes are copied there, an eighth of the size of normalized values.

Bit-identical to `ImageProcessor.patchify` on the host: a byte has 256 values, so normalization is a table look-up.
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
    """Memory for one host-to-device copy. It is reused, because pinning memory is slow while a GPU works.

    consumed: the event after the patches are computed from it.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.device = torch.empty(size, dtype=torch.uint8, device=device)
        self.consumed = torch.cuda.Event()  # type: ignore[no-untyped-call]


class Patchifier:
    """Patches of images of any size, in the tower's dtype on its device.

    On CUDA the host is at most four calls ahead of the device.
    """

    def __init__(
        self, image_processor: ImageProcessor, device: torch.device, dtype: torch.dtype, *, max_patches: int = 0
    ) -> None:
        """max_patches: the most that a call is expected to have."""
        self._image_processor, self._device = image_processor, device
        table = torch.from_numpy(image_processor.build_normalization_table().T.copy())
        self._table = table.to(dtype).flatten().to(device)
        self._channel_offsets = (torch.arange(3, dtype=torch.int32) * 256).view(3, 1, 1).to(device)
        self._buffers: deque[_StagingBuffer] = deque()
        if device.type == "cuda":
            self._copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            size = max_patches * image_processor.patch_size**2 * 3
            self._buffers.extend(self._allocate_buffer(size) for _ in range(_NUM_BUFFERS))

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "N D"]:
        """Patches of the images, one after the other. Fastest if images of one size are neighbors."""
        flat = self._copy_to_device(images)
        parts, start = [], 0
        try:
            for (height, width, _), run in groupby(image.shape for image in images):
                end = start + height * width * 3 * len(list(run))
                parts.append(self._extract_patches(flat[start:end].view(-1, height, width, 3)))
                start = end
        finally:
            if self._buffers:
                self._buffers[-1].consumed.record()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _allocate_buffer(self, size: int) -> _StagingBuffer:
        """Allocate on the copy stream: memory that another stream freed may still be read there."""
        with torch.cuda.stream(self._copy_stream):
            return _StagingBuffer(size, self._device)

    def _copy_to_device(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[Tensor, " B"]:
        size = sum(image.size for image in images)
        if not self._buffers:
            return torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])).to(self._device)

        # The oldest buffer, once the device no longer reads it; a larger one replaces it if needed.
        buffer = self._buffers[0]
        buffer.consumed.synchronize()
        if size > len(buffer.host):
            buffer = self._allocate_buffer(size)
        self._buffers.popleft()
        self._buffers.append(buffer)

        # The copy runs on its own stream, not behind the tower's pending work.
        np.concatenate([image.reshape(-1) for image in images], out=buffer.host[:size].numpy())
        with torch.cuda.stream(self._copy_stream):
            buffer.device[:size].copy_(buffer.host[:size], non_blocking=True)
        torch.cuda.current_stream(self._device).wait_stream(self._copy_stream)
        return buffer.device[:size]

    def _extract_patches(self, pixels: UInt8[Tensor, "K H W 3"]) -> Float[Tensor, "N D"]:
        patch, merge = self._image_processor.patch_size, self._image_processor.merge_size
        K, H, W, _ = pixels.shape
        rows, columns = H // (patch * merge), W // (patch * merge)
        blocks = pixels.view(K, rows, merge, patch, columns, merge, patch, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
        indices = blocks.reshape(-1, 3, 1, patch * patch).int() + self._channel_offsets
        values = self._table.index_select(0, indices.flatten()).view(indices.shape)
        return values.expand(-1, -1, self._image_processor.temporal_patch_size, -1).flatten(1)
