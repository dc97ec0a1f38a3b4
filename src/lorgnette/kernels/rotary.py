"""Rotary positions on queries and keys, in place of what the projection wrote.

    q₁' = q₁·cos − q₂·sin        q₂' = q₂·cos + q₁·sin        (q₁, q₂: a head's halves; Su et al. 2021)

Every pair of channels turns with one of the three coordinates of M-RoPE. The gradient turns the other way.
"""

from collections.abc import Sequence
from typing import no_type_check

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def expand_mrope_section(mrope_section: Sequence[int], device: torch.device) -> Int[Tensor, " half"]:
    """Which coordinate (0 time, 1 height, 2 width) each pair of channels turns with: `mrope_section` of the config."""
    return torch.repeat_interleave(torch.arange(len(mrope_section)), torch.tensor(mrope_section)).to(device)


def compute_inv_freq(head_dim: int, rope_theta: float, device: torch.device) -> Float32[Tensor, " half"]:
    """theta^(−2i/D), on the CPU first: there every machine gets the same numbers."""
    return (1.0 / rope_theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)).to(device)


def compute_cos_sin(
    position_ids: Int[Tensor, "3 T"], axes: Int[Tensor, " half"], inv_freq: Float32[Tensor, " half"]
) -> tuple[Float32[Tensor, "T half"], Float32[Tensor, "T half"]]:
    """Cosine and sine of every row's turn."""
    turned = position_ids.float().index_select(0, axes).T.contiguous() * inv_freq
    return turned.cos(), turned.sin()


def apply_rotary(
    rows: Float[Tensor, "T _"],
    cos: Float32[Tensor, "T half"],
    sin: Float32[Tensor, "T half"],
    num_heads: int,
    *,
    inverse: bool = False,
) -> None:
    """Turn the first `heads` heads of every row, in place; back: as the gradient of what was turned."""
    if not rows.is_cuda:
        apply_rotary_reference(rows, cos, -sin if inverse else sin, num_heads)
        return
    _rotary_kernel[(len(rows),)](
        rows, cos, sin, rows.stride(0),
        HEADS=num_heads, HEAD_BLOCK=triton.next_power_of_2(num_heads), HALF=cos.shape[1], BACK=inverse, num_warps=4,
    )  # fmt: skip


def apply_rotary_reference(
    rows: Float[Tensor, "T _"], cos: Float32[Tensor, "T half"], sin: Float32[Tensor, "T half"], num_heads: int
) -> None:
    half = cos.shape[1]
    turned = rows[:, : num_heads * 2 * half].view(len(rows), num_heads, 2, half)
    first, second = turned[:, :, 0].float(), turned[:, :, 1].float()
    c, s = cos[:, None], sin[:, None]
    turned.copy_(torch.stack([first * c - second * s, second * c + first * s], 2))


if triton is not None:

    @triton.jit
    @no_type_check
    def _rotary_kernel(
        rows, cos, sin, stride,
        HEADS: tl.constexpr, HEAD_BLOCK: tl.constexpr, HALF: tl.constexpr, BACK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, HALF)
        c, s = tl.load(cos + row * HALF + at)[None, :], tl.load(sin + row * HALF + at)[None, :]
        if BACK:
            s = -s
        heads = tl.arange(0, HEAD_BLOCK)[:, None]
        place = rows + row * stride + heads * (2 * HALF) + at[None, :]
        there = heads < HEADS
        first = tl.load(place, mask=there, other=0.0).to(tl.float32)
        second = tl.load(place + HALF, mask=there, other=0.0).to(tl.float32)
        tl.store(place, (first * c - second * s).to(rows.dtype.element_ty), mask=there)
        tl.store(place + HALF, (second * c + first * s).to(rows.dtype.element_ty), mask=there)
