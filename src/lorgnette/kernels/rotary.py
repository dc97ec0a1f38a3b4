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


def axes_of(sections: Sequence[int], device: torch.device) -> Int[Tensor, " half"]:
    """Which coordinate (0 time, 1 height, 2 width) each pair of channels turns with: `mrope_section` of the config."""
    return torch.repeat_interleave(torch.arange(len(sections)), torch.tensor(sections)).to(device)


def frequencies(head_dim: int, theta: float, device: torch.device) -> Float32[Tensor, " half"]:
    """theta^(−2i/D), on the CPU first: there every machine gets the same numbers."""
    return (1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)).to(device)


def angles(
    positions: Int[Tensor, "3 T"], axes: Int[Tensor, " half"], frequency: Float32[Tensor, " half"]
) -> tuple[Float32[Tensor, "T half"], Float32[Tensor, "T half"]]:
    """Cosine and sine of every row's turn."""
    turned = positions.float().index_select(0, axes).T.contiguous() * frequency
    return turned.cos(), turned.sin()


def rotate(
    rows: Float[Tensor, "T _"],
    cos: Float32[Tensor, "T half"],
    sin: Float32[Tensor, "T half"],
    heads: int,
    *,
    back: bool = False,
) -> None:
    """Turn the first `heads` heads of every row, in place; back: as the gradient of what was turned."""
    if not rows.is_cuda:
        rotate_reference(rows, cos, -sin if back else sin, heads)
        return
    _rotate[(len(rows),)](
        rows, cos, sin, rows.stride(0),
        HEADS=heads, HEAD_BLOCK=triton.next_power_of_2(heads), HALF=cos.shape[1], BACK=back, num_warps=4,
    )  # fmt: skip


def rotate_reference(
    rows: Float[Tensor, "T _"], cos: Float32[Tensor, "T half"], sin: Float32[Tensor, "T half"], heads: int
) -> None:
    half = cos.shape[1]
    turned = rows[:, : heads * 2 * half].view(len(rows), heads, 2, half)
    first, second = turned[:, :, 0].float(), turned[:, :, 1].float()
    c, s = cos[:, None], sin[:, None]
    turned.copy_(torch.stack([first * c - second * s, second * c + first * s], 2))


if triton is not None:

    @triton.jit
    @no_type_check
    def _rotate(
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
