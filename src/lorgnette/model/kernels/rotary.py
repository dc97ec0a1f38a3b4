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
    rows: Float[Tensor, "T _"], cos: Float32[Tensor, "T half"], sin: Float32[Tensor, "T half"], heads: int
) -> None:
    """Turn the first `heads` heads of every row, in place."""
    if not rows.is_cuda:
        rotate_reference(rows, cos, sin, heads)
        return
    _rotate[(len(rows),)](
        rows, cos, sin, rows.stride(0),
        HEADS=heads, HEAD_BLOCK=triton.next_power_of_2(heads), HALF=cos.shape[1], num_warps=4,
    )  # fmt: skip


def rotate_back(
    dq: Float[Tensor, "T H D"],
    dk: Float[Tensor, "T K D"],
    dv: Float[Tensor, "T K D"],
    cos: Float32[Tensor, "T half"],
    sin: Float32[Tensor, "T half"],
    out: Float[Tensor, "T _"],
) -> None:
    """The gradient of what `rotate` was given, side by side in `out`: queries, keys and values, which do not turn."""
    heads, narrow, half = dq.shape[1], dk.shape[1], cos.shape[1]
    if not out.is_cuda:
        out.copy_(torch.cat([dq, dk, dv], 1).flatten(1))
        rotate_reference(out, cos, -sin, heads + narrow)
        return
    _rotate_back[(len(out),)](
        dq, dk, dv, cos, sin, out, dq.stride(0), dk.stride(0), dv.stride(0),
        HEADS=heads, NARROW=narrow, HEAD_BLOCK=triton.next_power_of_2(heads),
        NARROW_BLOCK=triton.next_power_of_2(narrow), HALF=half, num_warps=4,
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
    def _turn(source, out, cos, sin, COUNT: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr):
        """COUNT heads of one row, side by side in source and in out."""
        at = tl.arange(0, HALF)
        heads = tl.arange(0, BLOCK)[:, None]
        place = heads * (2 * HALF) + at[None, :]
        there = (heads < COUNT) & (at < HALF)[None, :]
        first = tl.load(source + place, mask=there, other=0.0).to(tl.float32)
        second = tl.load(source + place + HALF, mask=there, other=0.0).to(tl.float32)
        tl.store(out + place, (first * cos - second * sin).to(out.dtype.element_ty), mask=there)
        tl.store(out + place + HALF, (second * cos + first * sin).to(out.dtype.element_ty), mask=there)

    @triton.jit
    @no_type_check
    def _rotate(rows, cos, sin, stride, HEADS: tl.constexpr, HEAD_BLOCK: tl.constexpr, HALF: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        at = row * HALF + tl.arange(0, HALF)
        c, s = tl.load(cos + at)[None, :], tl.load(sin + at)[None, :]
        _turn(rows + row * stride, rows + row * stride, c, s, HEADS, HEAD_BLOCK, HALF)

    @triton.jit
    @no_type_check
    def _rotate_back(
        dq, dk, dv, cos, sin, out, q_stride, k_stride, v_stride,
        HEADS: tl.constexpr, NARROW: tl.constexpr, HEAD_BLOCK: tl.constexpr, NARROW_BLOCK: tl.constexpr,
        HALF: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        at = row * HALF + tl.arange(0, HALF)
        c, s = tl.load(cos + at)[None, :], -tl.load(sin + at)[None, :]
        start = out + row * (HEADS + 2 * NARROW) * 2 * HALF
        _turn(dq + row * q_stride, start, c, s, HEADS, HEAD_BLOCK, HALF)
        _turn(dk + row * k_stride, start + HEADS * 2 * HALF, c, s, NARROW, NARROW_BLOCK, HALF)
        _turn(dv + row * v_stride, start + (HEADS + NARROW) * 2 * HALF, 1.0, 0.0, NARROW, NARROW_BLOCK, HALF)
