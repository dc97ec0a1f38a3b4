"""Rotary position embedding of queries and keys, in place on the projection's output.

    q₁' = q₁·cos − q₂·sin        q₂' = q₂·cos + q₁·sin        (q₁, q₂: halves of a head; RoFormer: Su et al. 2021)

In M-RoPE (Qwen2-VL) every channel pair rotates by one of three coordinates: in blocks, or interleaved (Qwen3-VL). The
gradient rotates by the negative angle.
"""

from collections.abc import Sequence
from typing import no_type_check

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton


def expand_mrope_section(
    mrope_section: Sequence[int], device: torch.device, *, is_interleaved: bool = False
) -> Int[Tensor, " half"]:
    """The coordinate (0 time, 1 height, 2 width) of each channel pair, from the config's `mrope_section`.

    is_interleaved: the coordinates take turns until height and width have their numbers of pairs; time has the rest.
    """
    sizes = torch.tensor(mrope_section)
    if not is_interleaved:
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)
    pairs = torch.arange(int(sizes.sum()))
    axes = pairs % len(sizes)
    return torch.where(pairs < len(sizes) * sizes[axes], axes, 0).to(device)


def compute_inv_freq(head_dim: int, rope_theta: float, device: torch.device) -> Float32[Tensor, " half"]:
    """rope_theta^(−2i/D), computed on the CPU: the same numbers on every machine."""
    return (1.0 / rope_theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)).to(device)


def compute_cos_sin(
    position_ids: Int[Tensor, "3 T"], axes: Int[Tensor, " half"], inv_freq: Float32[Tensor, " half"]
) -> tuple[Float32[Tensor, "T half"], Float32[Tensor, "T half"]]:
    """Cosine and sine of every token's angles."""
    angles = position_ids.float().index_select(0, axes).T.contiguous() * inv_freq
    return angles.cos(), angles.sin()


def apply_rotary(
    rows: Float[Tensor, "T _"],
    cos: Float32[Tensor, "T half"],
    sin: Float32[Tensor, "T half"],
    num_heads: int,
    *,
    inverse: bool = False,
) -> None:
    """Rotate the first `num_heads` heads of every row in place. inverse: by the negative angle, for the gradient."""
    if not rows.is_cuda:
        heads = rows[:, : num_heads * 2 * cos.shape[1]].view(len(rows), num_heads, 2, -1)
        first, second = heads[:, :, 0].float(), heads[:, :, 1].float()
        c, s = cos[:, None], -sin[:, None] if inverse else sin[:, None]
        heads.copy_(torch.stack([first * c - second * s, second * c + first * s], 2))
        return
    _rotary_kernel[(len(rows),)](
        rows, cos, sin, rows.stride(0),
        HEADS=num_heads, BLOCK_H=triton.next_power_of_2(num_heads), HALF=cos.shape[1], INVERSE=inverse, num_warps=4,
    )  # fmt: skip


if triton is not None:

    @triton.jit
    @no_type_check
    def _rotary_kernel(
        rows, cos, sin, stride,
        HEADS: tl.constexpr, BLOCK_H: tl.constexpr, HALF: tl.constexpr, INVERSE: tl.constexpr,
    ):  # fmt: skip
        """All heads of one row: they share its cosines and sines."""
        row = tl.program_id(0).to(tl.int64)
        offs_d = tl.arange(0, HALF)
        c, s = tl.load(cos + row * HALF + offs_d)[None, :], tl.load(sin + row * HALF + offs_d)[None, :]
        if INVERSE:
            s = -s
        offs_h = tl.arange(0, BLOCK_H)[:, None]
        ptrs = rows + row * stride + offs_h * (2 * HALF) + offs_d[None, :]
        mask_h = offs_h < HEADS
        first = tl.load(ptrs, mask=mask_h, other=0.0).to(tl.float32)
        second = tl.load(ptrs + HALF, mask=mask_h, other=0.0).to(tl.float32)
        tl.store(ptrs, (first * c - second * s).to(rows.dtype.element_ty), mask=mask_h)
        tl.store(ptrs + HALF, (second * c + first * s).to(rows.dtype.element_ty), mask=mask_h)
