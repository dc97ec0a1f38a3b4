"""Qwen2.5-VL's vision tower, forward only: attention stays inside windows of an image in most blocks.

    RMSNorm without a bias instead of LayerNorm; SwiGLU, with biases, instead of GELU

Patches are put into the order of their windows before the first block, whole merge² blocks at a time, and features back
into the images' order behind the merger. So one call of varlen attention does either kind of block.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from lorgnette.device import copy_to_device
from lorgnette.kernels.layer_norm import rms_norm
from lorgnette.kernels.swiglu import swiglu
from lorgnette.models.qwen2_vl import vision_tower as qwen2_vl
from lorgnette.models.qwen2_vl.vision_tower import NORM_EPS, ImageSpans, add_product
from lorgnette.types import ImageGrid


class VisionTower(qwen2_vl.VisionTower):
    MLP_INPUTS = ("mlp.gate_proj", "mlp.up_proj")
    MLP_INPUT, MLP_OUTPUT = "mlp.gate_up", "mlp.down_proj"

    @torch.no_grad()
    def __call__(self, grids: Sequence[ImageGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "P C"]:
        """Features of the images, in the order of their patches. The host does not wait for the device."""
        order = self._order_blocks(grids)
        to_windows, to_images = copy_to_device(np.stack([order, np.argsort(order)]), self.device)
        ordered = patches.reshape(len(order), -1).index_select(0, to_windows).view(patches.shape)
        return super().__call__(grids, ordered).index_select(0, to_images)

    def _add_mlp(self, x: Float[Tensor, "N E"], block: str, bias: Tensor) -> None:
        """x += down(silu(gate) · up) of norm2 x, without down's bias. bias: the deferred one."""
        gate_up = self._apply_linear(self._apply_norm(x, f"{block}.norm2", bias), f"{block}.mlp.gate_up")
        hidden = gate_up[:, : gate_up.shape[1] // 2]  # in the place of gate
        swiglu(gate_up, hidden)
        add_product(x, hidden, self._get_weight(f"{block}.mlp.down_proj.weight"))

    def _apply_norm(self, x: Tensor, name: str, deferred_bias: Tensor) -> Tensor:
        return rms_norm(x, deferred_bias, self._get_weight(f"{name}.weight"), NORM_EPS)

    def _build_spans(self, grids: Sequence[ImageGrid]) -> list[ImageSpans]:
        """Frames in the blocks of full attention, windows in the others."""
        (images, *_), merge = super()._build_spans(grids), self.config.merge_size**2
        lengths = (length * merge for grid in grids for _ in range(grid.t) for length in self._split_frame(grid)[1])
        windows = ImageSpans.from_lengths(tuple(lengths), self.device)
        return [images if i in self.config.full_attention_blocks else windows for i in range(self.config.depth)]

    def _list_positions(self, grids: Sequence[ImageGrid]) -> Int32[np.ndarray, "N 2"]:
        order, positions = self._order_blocks(grids), super()._list_positions(grids)
        ordered: np.ndarray = positions.reshape(len(order), -1)[order]
        return ordered.reshape(positions.shape)

    def _order_blocks(self, grids: Sequence[ImageGrid]) -> Int32[np.ndarray, " P"]:
        """The merge² blocks of all images, window after window."""
        parts, start = [], 0
        for grid in grids:
            for _ in range(grid.t):
                order, _ = self._split_frame(grid)
                parts.append(start + order)
                start += len(order)
        return np.concatenate(parts)

    def _split_frame(self, grid: ImageGrid) -> tuple[Int32[np.ndarray, " B"], tuple[int, ...]]:
        merge = self.config.merge_size
        return split_into_windows(
            grid.h // merge, grid.w // merge, self.config.window_size // (merge * self.config.patch_size)
        )


@lru_cache(maxsize=1024)
def split_into_windows(rows: int, columns: int, side: int) -> tuple[Int32[np.ndarray, " B"], tuple[int, ...]]:
    """(a frame's rows × columns blocks, window after window; the number of blocks in each window).

    Windows are side × side, row after row, and smaller at the right and lower edge.
    """
    blocks = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    corners = [(y, x) for y in range(0, rows, side) for x in range(0, columns, side)]
    windows = [blocks[y : y + side, x : x + side].ravel() for y, x in corners]
    return np.concatenate(windows), tuple(map(len, windows))
