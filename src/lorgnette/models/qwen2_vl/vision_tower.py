"""Qwen2-VL's vision tower, forward only: many pictures of any size in one row of patches.

    N patches of all pictures, E wide, H heads of D, merge² patches to a feature

    patches [N, 3·2·14²] ─ matmul ─▶ x [N, E] ─ depth × ( x += proj(attention(norm1 x)) ; x += fc2(fc1(norm2 x)) )
                                               ─ norm ─ [N/merge², E·merge²] ─ mlp ─▶ features [P, out]

Attention stays inside a picture. The biases of proj and fc2 are never added to x: they are constants, kept as a row
(`shift`) that the norms add (see kernels/layernorm.py), so that the product can add onto x by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from lorgnette.device import sent
from lorgnette.kernels.gelu import quick_gelu_
from lorgnette.kernels.layer_norm import layer_norm
from lorgnette.kernels.rotary_vision import rotate_
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.models.qwen2_vl.config import VISION_THETA, VisionShape, config_of
from lorgnette.models.qwen2_vl.weights import read_into
from lorgnette.types import PictureGrid

EPS = 1e-6  # of the tower's norms in transformers' qwen2_vl; config.json does not say
_FLASH_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the pictures of a row stand: patches of each in order; on CUDA also their borders."""

    lengths: tuple[int, ...]
    borders: Int32[Tensor, " B"]


class VisionTower:
    """Patches to features, with weights frozen."""

    def __init__(self, shape: VisionShape, weights: dict[str, Tensor]) -> None:
        """weights: by today's name, as `shape.weights()` lists them; all of one dtype on one device."""
        self.shape, self._weights = shape, weights
        patch = self._of("patch_embed.proj.weight")
        self.device, self.dtype = patch.device, patch.dtype
        self._patch = patch.flatten(1)
        self._shifts = _shifts(shape, weights)
        self._table = self._turns(64)

    @classmethod
    def read(cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> "VisionTower":
        """Raises LorgnetteError where the checkpoint is broken or its config is not known here."""
        shape = VisionShape.of(config_of(checkpoint))
        weights = {name: torch.empty(size, dtype=dtype, device=device) for name, size in shape.weights().items()}
        read_into(checkpoint, weights)
        return cls(shape, weights)

    @torch.no_grad()
    def __call__(self, grids: Sequence[PictureGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "P C"]:
        """Features of the pictures one after the other, as `patches` holds them. Nothing waits for the device."""
        spans, places = self._spans(grids), self._places(grids)
        self._reach(max(max(grid.h, grid.w) for grid in grids))
        x = patches.to(self.dtype) @ self._patch.T
        for i in range(self.shape.depth):
            self._attend(x, f"blocks.{i}", self._shifts[2 * i], spans, places)
            hidden = self._linear(self._norm(x, f"blocks.{i}.norm2", self._shifts[2 * i + 1]), f"blocks.{i}.mlp.fc1")
            quick_gelu_(hidden)
            x.addmm_(hidden, self._of(f"blocks.{i}.mlp.fc2.weight").T)
        merged = self._norm(x, "merger.ln_q", self._shifts[-1]).view(-1, self.shape.embed * self.shape.merge**2)
        return self._linear(gelu(self._linear(merged, "merger.mlp.0")), "merger.mlp.2")

    def _attend(
        self, x: Float[Tensor, "N E"], block: str, shift: Tensor, spans: Spans, places: Int32[Tensor, "N 2"]
    ) -> None:
        """x += proj(attention(norm1 x)), proj's bias left out."""
        qkv = self._linear(self._norm(x, f"{block}.norm1", shift), f"{block}.attn.qkv")
        heads = qkv.view(len(x), 3, self.shape.heads, self.shape.head_dim)
        rotate_(heads, places, *self._table)
        x.addmm_(attention(heads, spans).flatten(1), self._of(f"{block}.attn.proj.weight").T)

    def _of(self, name: str) -> Tensor:
        return self._weights[f"model.visual.{name}"]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self._of(f"{name}.weight"), self._of(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str, shift: Tensor) -> Tensor:
        return layer_norm(x, shift, self._of(f"{name}.weight"), self._of(f"{name}.bias"), EPS)

    def _spans(self, grids: Sequence[PictureGrid]) -> Spans:
        lengths = tuple(grid.h * grid.w for grid in grids for _ in range(grid.t))
        borders = np.fromiter(accumulate(lengths, initial=0), np.int32, len(lengths) + 1)
        return Spans(lengths, sent(borders, self.device))

    def _places(self, grids: Sequence[PictureGrid]) -> Int32[Tensor, "N 2"]:
        places = [places_of(grid.h, grid.w, self.shape.merge) for grid in grids for _ in range(grid.t)]
        return sent(np.concatenate(places), self.device)

    def _reach(self, longest: int) -> None:
        if longest > len(self._table[0]):
            self._table = self._turns(2 * longest)

    def _turns(self, longest: int) -> tuple[Float32[Tensor, "L F"], Float32[Tensor, "L F"]]:
        """Cosine and sine by place and frequency."""
        half = self.shape.head_dim // 2
        frequencies = 1.0 / VISION_THETA ** (torch.arange(0, half, 2).float() / half)
        angles = torch.arange(longest).float()[:, None] * frequencies
        return angles.cos().to(self.device), angles.sin().to(self.device)


def attention(qkv: Float[Tensor, "N 3 H D"], spans: Spans) -> Float[Tensor, "N H D"]:
    """softmax(q·kᵀ/√D)·v within every picture. On CUDA in half precision one call of the flash kernels inside torch;
    elsewhere a call for every run of pictures of one size."""
    q, k, v = qkv.unbind(1)
    if qkv.is_cuda and qkv.dtype in _FLASH_DTYPES and qkv.shape[-1] % 8 == 0:
        longest = max(spans.lengths)
        made: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, spans.borders, spans.borders, longest, longest, 0.0, False, False, scale=qkv.shape[-1] ** -0.5
        )[0]
        return made
    parts, at = [], 0
    for length, run in groupby(spans.lengths):
        end = at + length * len(list(run))
        q, k, v = qkv[at:end].view(-1, length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
        parts.append(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        at = end
    return torch.cat(parts)


@lru_cache(maxsize=1024)
def places_of(h: int, w: int, merge: int) -> Int32[np.ndarray, "N 2"]:
    """(row, column) of a picture's patches in their order: block after block of merge × merge."""
    rows, columns = np.indices((h, w), dtype=np.int32)
    blocked = np.stack([rows, columns], -1).reshape(h // merge, merge, w // merge, merge, 2)
    return blocked.transpose(0, 2, 1, 3, 4).reshape(-1, 2)


def _shifts(shape: VisionShape, weights: dict[str, Tensor]) -> list[Float32[Tensor, " E"]]:
    """The biases left out of x, added up: before each norm of each block, and before the merger's."""
    left = [
        weights[f"model.visual.blocks.{i}.{name}.bias"].float()
        for i in range(shape.depth)
        for name in ("attn.proj", "mlp.fc2")
    ]
    return list(accumulate(left, initial=torch.zeros_like(left[0])))
