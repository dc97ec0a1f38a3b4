"""The vision tower's two-dimensional rotary embedding, in place on q and k.

A head's D channels are two halves of D/2; channel i of the first half rotates with channel i of the second. The first
D/4 pairs rotate by the patch's row, the others by its column (Qwen2-VL in transformers).
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton


def apply_rotary_vision_(
    qkv: Float[Tensor, "N 3 H D"],
    patch_positions: Int32[Tensor, "N 2"],
    cos: Float32[Tensor, "L F"],
    sin: Float32[Tensor, "L F"],
) -> None:
    """Rotate q and k of every patch in place. patch_positions: (row, column); cos, sin: by position and frequency,
    F = D/4."""
    if not qkv.is_cuda:
        c, s = (table[patch_positions.long()].flatten(1)[:, None, None] for table in (cos, sin))
        first, second = qkv[:, :2].float().chunk(2, -1)
        qkv[:, :2] = torch.cat([first * c - second * s, second * c + first * s], -1)
        return
    heads, D = 2 * qkv.shape[2], qkv.shape[3]
    _rotary_vision_kernel[(len(qkv),)](
        qkv, patch_positions, cos, sin,
        ROW=qkv.stride(0), HEADS=heads, D=D, BLOCK_H=triton.next_power_of_2(heads),
        BLOCK_HALF=triton.next_power_of_2(D // 2), num_warps=4,
    )  # fmt: skip


if triton is not None:

    @triton.jit
    @no_type_check
    def _rotary_vision_kernel(
        qkv, patch_positions, cos, sin,
        ROW: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr,
    ):  # fmt: skip
        """All heads of q and k of one patch."""
        row = tl.program_id(0).to(tl.int64)
        offs_d = tl.arange(0, BLOCK_HALF)
        offs_h = tl.arange(0, BLOCK_H)
        mask_d = offs_d < D // 2
        # Pairs below D/4 look up the patch's row in the table, the others its column.
        position = tl.load(patch_positions + row * 2 + offs_d // (D // 4), mask=mask_d, other=0)
        offs_table = position * (D // 4) + offs_d % (D // 4)
        c = tl.load(cos + offs_table, mask=mask_d, other=0.0)[None, :]
        s = tl.load(sin + offs_table, mask=mask_d, other=0.0)[None, :]
        ptrs = qkv + row * ROW + offs_h[:, None] * D + offs_d[None, :]
        mask_hd = (offs_h[:, None] < HEADS) & mask_d[None, :]
        first = tl.load(ptrs, mask=mask_hd, other=0.0).to(tl.float32)
        second = tl.load(ptrs + D // 2, mask=mask_hd, other=0.0).to(tl.float32)
        tl.store(ptrs, (first * c - second * s).to(qkv.dtype.element_ty), mask=mask_hd)
        tl.store(ptrs + D // 2, (second * c + first * s).to(qkv.dtype.element_ty), mask=mask_hd)
