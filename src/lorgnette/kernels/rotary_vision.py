"""The vision tower's rotary embedding, in two dimensions, in place on q and k.

A head's D numbers are two halves of D/2; number i of the first turns with number i of the second. The first D/4 pairs
turn with the patch's row, the others with its column (transformers' qwen2_vl).
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch without CUDA comes without it
    triton = None


def apply_rotary_vision_(
    qkv: Float[Tensor, "N 3 H D"],
    patch_positions: Int32[Tensor, "N 2"],
    cos: Float32[Tensor, "L F"],
    sin: Float32[Tensor, "L F"],
) -> None:
    """Turn q and k of every patch in place. places: (row, column); cos, sin: by place and frequency, F = D/4."""
    if not qkv.is_cuda:
        qkv[:, :2] = apply_rotary_vision_reference(qkv[:, :2], patch_positions, cos, sin)
        return
    heads, D = 2 * qkv.shape[2], qkv.shape[3]
    _rotary_vision_kernel[(len(qkv),)](
        qkv, patch_positions, cos, sin,
        ROW=qkv.stride(0), HEADS=heads, D=D, HEADS_BLOCK=triton.next_power_of_2(heads),
        HALF_BLOCK=triton.next_power_of_2(D // 2), num_warps=4,
    )  # fmt: skip


def apply_rotary_vision_reference(
    qk: Float[Tensor, "N 2 H D"],
    patch_positions: Int32[Tensor, "N 2"],
    cos: Float32[Tensor, "L F"],
    sin: Float32[Tensor, "L F"],
) -> Float[Tensor, "N 2 H D"]:
    c, s = (table[patch_positions.long()].flatten(1)[:, None, None] for table in (cos, sin))
    first, second = qk.float().chunk(2, -1)
    return torch.cat([first * c - second * s, second * c + first * s], -1).to(qk.dtype)


if triton is not None:

    @triton.jit
    @no_type_check
    def _rotary_vision_kernel(
        qkv, places, cos, sin,
        ROW: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, HEADS_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        pair = tl.arange(0, HALF_BLOCK)
        head = tl.arange(0, HEADS_BLOCK)
        inside = pair < D // 2
        place = tl.load(places + row * 2 + pair // (D // 4), mask=inside, other=0)
        at = place * (D // 4) + pair % (D // 4)
        c = tl.load(cos + at, mask=inside, other=0.0)[None, :]
        s = tl.load(sin + at, mask=inside, other=0.0)[None, :]
        start = qkv + row * ROW + head[:, None] * D + pair[None, :]
        mask = (head[:, None] < HEADS) & inside[None, :]
        first = tl.load(start, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(start + D // 2, mask=mask, other=0.0).to(tl.float32)
        tl.store(start, (first * c - second * s).to(qkv.dtype.element_ty), mask=mask)
        tl.store(start + D // 2, (second * c + first * s).to(qkv.dtype.element_ty), mask=mask)
