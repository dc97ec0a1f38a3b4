"""RMSNorm of every head of queries and keys, and the rotary embedding behind it, in one kernel.

    x̂ = x · rstd      rstd = 1/√(mean(x²) + eps)      q = rotate(weight · x̂)

All query heads share one weight, all key heads another. The gradient rotates back first:

    g = weight · rotate⁻¹(dq)      dx = rstd · (g − x̂ · mean(g · x̂))

The backward pass needs x, so the forward pass of training writes its result elsewhere. rstd is cheap to compute again.
Sums are fp32 for every dtype; each result is rounded once.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton

_BLOCK_HEADS = 16
"""Heads per program: 8 channels of each half for every thread of four warps, at a head width of 128."""


def norm_and_rotate(
    qkv: Float[Tensor, "T _"],
    weights: Float[Tensor, "2 D"],
    eps: float,
    cos: Float32[Tensor, "T half"],
    sin: Float32[Tensor, "T half"],
    num_heads: tuple[int, int],
    out: Float[Tensor, "T _"],
) -> None:
    """Write queries and keys, normed and rotated, into `out`, which may be `qkv` itself. Its values are left alone.

    weights: of the query heads' norm and of the key heads'. num_heads: (query heads, key-value heads).
    """
    (H, K), D = num_heads, weights.shape[1]
    if not qkv.is_cuda:
        heads, end = qkv.unflatten(1, (-1, D))[:, : H + K].float(), (H + K) * D
        normed = _repeat_by_head(weights, num_heads) * (heads * _compute_rstd(heads, eps))
        (first, second), c, s = normed.chunk(2, -1), cos[:, None], sin[:, None]
        out[:, :end] = torch.cat([first * c - second * s, second * c + first * s], -1).flatten(1)
        return
    block = min(_BLOCK_HEADS, triton.next_power_of_2(H + K))
    _norm_rotate_kernel[(len(qkv), triton.cdiv(H + K, block))](
        qkv, weights, cos, sin, out, qkv.stride(0), out.stride(0), eps,
        H=H, HEADS=H + K, HALF=D // 2, BLOCK_H=block, num_warps=4,
    )  # fmt: skip


def norm_and_rotate_backward(
    dqkv: Float[Tensor, "T _"],
    qkv: Float[Tensor, "T _"],
    weights: Float[Tensor, "2 D"],
    eps: float,
    cos: Float32[Tensor, "T half"],
    sin: Float32[Tensor, "T half"],
    num_heads: tuple[int, int],
) -> None:
    """Turn the gradient of `norm_and_rotate`'s output into that of `qkv`, in place. The weights are frozen."""
    (H, K), D = num_heads, weights.shape[1]
    if not dqkv.is_cuda:
        (heads, grad), end = (rows.unflatten(1, (-1, D))[:, : H + K].float() for rows in (qkv, dqkv)), (H + K) * D
        (first, second), c, s = grad.chunk(2, -1), cos[:, None], sin[:, None]
        g = torch.cat([first * c + second * s, second * c - first * s], -1) * _repeat_by_head(weights, num_heads)
        rstd = _compute_rstd(heads, eps)
        normed = heads * rstd
        dqkv[:, :end] = (rstd * (g - normed * (g * normed).mean(-1, keepdim=True))).flatten(1)
        return
    block = min(_BLOCK_HEADS, triton.next_power_of_2(H + K))
    _norm_rotate_backward_kernel[(len(dqkv), triton.cdiv(H + K, block))](
        dqkv, qkv, weights, cos, sin, dqkv.stride(0), qkv.stride(0), eps,
        H=H, HEADS=H + K, HALF=D // 2, BLOCK_H=block, num_warps=4,
    )  # fmt: skip


def _compute_rstd(heads: Float32[Tensor, "T N D"], eps: float) -> Float32[Tensor, "T N 1"]:
    return torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps)


def _repeat_by_head(weights: Float[Tensor, "2 D"], num_heads: tuple[int, int]) -> Float32[Tensor, "N D"]:
    return torch.repeat_interleave(weights.float(), torch.tensor(num_heads), 0)


if triton is not None:

    @triton.jit
    @no_type_check
    def _norm_rotate_kernel(
        qkv, weights, cos, sin, out, stride, out_stride, eps,
        H: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_H: tl.constexpr,
    ):  # fmt: skip
        """BLOCK_H heads of one row."""
        row = tl.program_id(0).to(tl.int64)
        offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
        offs_d = tl.arange(0, HALF)[None, :]
        mask_h = offs_h < HEADS
        ptrs = qkv + row * stride + offs_h * (2 * HALF) + offs_d
        first = tl.load(ptrs, mask=mask_h, other=0.0).to(tl.float32)
        second = tl.load(ptrs + HALF, mask=mask_h, other=0.0).to(tl.float32)
        rstd = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + eps)[:, None]
        w = weights + tl.where(offs_h < H, 0, 2 * HALF) + offs_d
        first, second = tl.load(w).to(tl.float32) * (first * rstd), tl.load(w + HALF).to(tl.float32) * (second * rstd)
        c, s = tl.load(cos + row * HALF + offs_d), tl.load(sin + row * HALF + offs_d)
        ptrs = out + row * out_stride + offs_h * (2 * HALF) + offs_d
        tl.store(ptrs, (first * c - second * s).to(out.dtype.element_ty), mask=mask_h)
        tl.store(ptrs + HALF, (second * c + first * s).to(out.dtype.element_ty), mask=mask_h)

    @triton.jit
    @no_type_check
    def _norm_rotate_backward_kernel(
        dqkv, qkv, weights, cos, sin, grad_stride, stride, eps,
        H: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_H: tl.constexpr,
    ):  # fmt: skip
        """BLOCK_H heads of one row."""
        row = tl.program_id(0).to(tl.int64)
        offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
        offs_d = tl.arange(0, HALF)[None, :]
        mask_h = offs_h < HEADS
        ptrs = qkv + row * stride + offs_h * (2 * HALF) + offs_d
        first = tl.load(ptrs, mask=mask_h, other=0.0).to(tl.float32)
        second = tl.load(ptrs + HALF, mask=mask_h, other=0.0).to(tl.float32)
        rstd = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + eps)[:, None]
        # Rotate the gradient back.
        grad_ptrs = dqkv + row * grad_stride + offs_h * (2 * HALF) + offs_d
        grad_first = tl.load(grad_ptrs, mask=mask_h, other=0.0).to(tl.float32)
        grad_second = tl.load(grad_ptrs + HALF, mask=mask_h, other=0.0).to(tl.float32)
        c, s = tl.load(cos + row * HALF + offs_d), tl.load(sin + row * HALF + offs_d)
        w = weights + tl.where(offs_h < H, 0, 2 * HALF) + offs_d
        g_first = (grad_first * c + grad_second * s) * tl.load(w).to(tl.float32)
        g_second = (grad_second * c - grad_first * s) * tl.load(w + HALF).to(tl.float32)
        # The norm's backward.
        first, second = first * rstd, second * rstd
        mean = (tl.sum(g_first * first, 1) + tl.sum(g_second * second, 1))[:, None] / (2 * HALF)
        tl.store(grad_ptrs, (rstd * (g_first - first * mean)).to(dqkv.dtype.element_ty), mask=mask_h)
        tl.store(grad_ptrs + HALF, (rstd * (g_second - second * mean)).to(dqkv.dtype.element_ty), mask=mask_h)
