"""Pixels to patches on the device: bytes travel there, an eighth of what normalised numbers would be.

Bit for bit what `PictureRule.patches` makes on the host: a byte has 256 values, so normalising is a look-up.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lorgnette.encode.pixels import PictureRule


class Patchify:
    """Pictures of any sizes to one row of patches, in the tower's dtype on its device."""

    def __init__(self, rule: PictureRule, device: torch.device, dtype: torch.dtype) -> None:
        self._rule, self._device = rule, device
        self._table = torch.from_numpy(rule.levels().T.copy()).to(dtype).flatten().to(device)
        self._channels = (torch.arange(3, dtype=torch.int32) * 256).view(3, 1, 1).to(device)
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "N D"]:
        """Patches of the pictures one after the other. Best where pictures of one size stand together."""
        flat = self._sent(pictures)
        parts, at = [], 0
        for (height, width, _), run in groupby(picture.shape for picture in pictures):
            end = at + height * width * 3 * len(list(run))
            parts.append(self._patches(flat[at:end].view(-1, height, width, 3)))
            at = end
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _sent(self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[Tensor, " B"]:
        size = sum(picture.size for picture in pictures)
        flat = torch.empty(size, dtype=torch.uint8, pin_memory=self._copying is not None)
        target, at = flat.numpy(), 0
        for picture in pictures:
            target[at : at + picture.size] = picture.reshape(-1)
            at += picture.size
        if self._copying is None:
            return flat
        # A stream of its own copies at once: behind what the tower has still to do, every call would pin memory anew.
        with torch.cuda.stream(self._copying):
            sent = flat.to(self._device, non_blocking=True)
        here = torch.cuda.current_stream(self._device)
        here.wait_stream(self._copying)
        sent.record_stream(here)
        return sent

    def _patches(self, pixels: UInt8[Tensor, "K H W 3"]) -> Float[Tensor, "N D"]:
        patch, merge = self._rule.patch, self._rule.merge
        K, H, W, _ = pixels.shape
        rows, columns = H // (patch * merge), W // (patch * merge)
        blocks = pixels.view(K, rows, merge, patch, columns, merge, patch, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
        values = blocks.reshape(-1, 3, 1, patch * patch).int() + self._channels
        numbers = self._table.index_select(0, values.flatten()).view(values.shape)
        return numbers.expand(-1, -1, self._rule.temporal, -1).flatten(1)
