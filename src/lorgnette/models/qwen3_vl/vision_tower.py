"""Qwen3-VL's vision tower, forward only: learned positions, and levels of features for the first decoder layers.

    patches ─ matmul ─ + positions ─▶ x ─ blocks ─▶ x ─ merger ─▶ features [P, out]
                                          └ after some of them: a merger of its own ─▶ a level [P, out]

The positions are a square of rows, stretched over every image. The bias of the patches is deferred like the others.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from jaxtyping import Float, Float32, Int32
from torch import Tensor
from torch.nn.functional import embedding_bag

from lorgnette.device import copy_to_device
from lorgnette.kernels.gelu import linear_gelu_tanh
from lorgnette.models.model_config import VisionConfig
from lorgnette.models.qwen2_vl import vision_tower as qwen2_vl
from lorgnette.models.qwen2_vl.vision_tower import add_product, compute_patch_positions
from lorgnette.types import ImageGrid


class VisionTower(qwen2_vl.VisionTower):
    MLP_INPUTS = ("mlp.linear_fc1",)
    MLP_INPUT, MLP_OUTPUT = "mlp.linear_fc1", "mlp.linear_fc2"
    MERGER_PARTS = ("norm", "linear_fc1", "linear_fc2")

    def __init__(self, config: VisionConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__(config, weights)
        self._position_table = self._get_weight("pos_embed.weight").float()

    def _embed_patches(self, grids: Sequence[ImageGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        """The residual stream before the first block, without the bias."""
        # Images of one size have the same positions.
        sizes = list(dict.fromkeys((grid.h, grid.w) for grid in grids))
        starts = dict(zip(sizes, accumulate((h * w for h, w in sizes), initial=0), strict=False))
        frames = [(grid.h, grid.w) for grid in grids for _ in range(grid.t)]
        rows = [np.arange(starts[h, w], starts[h, w] + h * w, dtype=np.int32) for h, w in frames]
        merge, side = self.config.merge_size, self.config.position_table
        parts = zip(*(interpolate_positions(h, w, merge, side) for h, w in sizes), strict=True)
        corners, shares = (copy_to_device(np.concatenate(part), self.device) for part in parts)
        positions = embedding_bag(corners, self._position_table, mode="sum", per_sample_weights=shares).to(self.dtype)
        x = positions.index_select(0, copy_to_device(np.concatenate(rows), self.device))
        return x.addmm_(patches, self._patch_weight.T)

    def _add_mlp(self, x: Float[Tensor, "N E"], block: str, bias: Tensor) -> None:
        """x += fc2(gelu(fc1(norm2 x))), without fc2's bias. bias: the deferred one."""
        normed, mlp = self._apply_norm(x, f"{block}.norm2", bias), f"{block}.mlp"
        weight, fc1_bias = (self._get_weight(f"{mlp}.linear_fc1.{kind}") for kind in ("weight", "bias"))
        hidden = linear_gelu_tanh(normed, weight, fc1_bias)
        add_product(x, hidden, self._get_weight(f"{mlp}.linear_fc2.weight"))


@lru_cache(maxsize=256)
def interpolate_positions(
    h: int, w: int, merge: int, side: int
) -> tuple[Int32[np.ndarray, "N 4"], Float32[np.ndarray, "N 4"]]:
    """(rows of the table around each patch, their shares): bilinear, the image's corners on the square's corners.

    Patches are in their order, block after block of merge × merge. Computed in fp32, as in transformers.
    """
    sizes = np.array([h, w], np.float32)
    source = compute_patch_positions(h, w, merge).astype(np.float32) * np.float32(side - 1) / np.maximum(sizes - 1, 1)
    low = np.floor(source)
    nearest = np.stack([low, np.minimum(low + 1, side - 1)], 2).astype(np.int32)  # [patch, axis, lower or upper]
    shares = np.stack([1 - (source - low), source - low], 2)
    corners = nearest[:, 0, :, None] * side + nearest[:, 1, None, :]
    return corners.reshape(-1, 4), (shares[:, 0, :, None] * shares[:, 1, None, :]).reshape(-1, 4)
