"""Residual addition and RMSNorm in one kernel: the residual stream is read and written once.

    x' = x + delta      rstd = 1/√(mean(x'²) + eps)      xn = weight · x' · rstd          (Zhang & Sennrich 2019)

Sums are fp32 for every dtype; each result is rounded once.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.kernels.dropout import DropoutSpec, apply_dropout, build_kernel_args
from lorgnette.kernels.triton_import import tl, triton


def add_rms_norm(
    x: Float[Tensor, "T C"],
    delta: Float[Tensor, "T C"] | None,
    weight: Float[Tensor, " C"],
    eps: float,
    out: Float[Tensor, "T C"],
    dropout_spec: DropoutSpec | None = None,
) -> tuple[Float[Tensor, "T C"], Float32[Tensor, " T"], Float[Tensor, "n T C"] | None]:
    """Write xn into `out` (may be columns of a wider matrix). Returns (x', rstd, dropped).

    x' is `x` itself if `delta` is None. dropped: xn under every mask of `dropout_spec`, as `apply_dropout` returns it.
    """
    dropout, count, rng_stream = dropout_spec or (None, 0, 0)
    if not x.is_cuda:
        summed = x if delta is None else x + delta
        rstd = torch.rsqrt(summed.float().square().mean(-1) + eps)
        out.copy_(weight.float() * (summed.float() * rstd[:, None]))
        return summed, rstd, None if dropout is None else apply_dropout(out, count, dropout, rng_stream)
    summed = x if delta is None else torch.empty_like(x)
    rstd = torch.empty(len(x), dtype=torch.float32, device=x.device)
    dropped = None if dropout is None else torch.empty(count, *x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    _add_rms_norm_kernel[(len(x),)](
        x, x if delta is None else delta, weight, summed, out, rstd, x if dropped is None else dropped, len(x),
        x.shape[1], out.stride(0), eps, *build_kernel_args(dropout, x, rng_stream), ADD=delta is not None, COUNT=count,
        BLOCK=block, num_warps=_select_num_warps(block),
    )  # fmt: skip
    return summed, rstd, dropped


def rms_norm_backward(
    grad: Float[Tensor, "T C"],
    x: Float[Tensor, "T C"],
    rstd: Float32[Tensor, " T"],
    weight: Float[Tensor, " C"],
    residual: Float[Tensor, "T C"] | None = None,
) -> tuple[Float[Tensor, "T C"], Float[Tensor, "T C"]]:
    """(gradient of x', xn recomputed with the same rounding). The weight is frozen.

    grad: of xn; may be columns of a wider matrix.
    residual: the gradient that reaches x' past the norm; added to the result.
    """
    if not x.is_cuda:
        # dx = rstd · (g·w) − x · rstd³ · mean(g·w·x)
        wg = grad.float() * weight.float()
        mean = (wg * x.float()).mean(-1, keepdim=True)
        dx = (rstd[:, None] * (wg - x.float() * rstd[:, None].square() * mean)).to(x.dtype)
        normed = (weight.float() * (x.float() * rstd[:, None])).to(x.dtype)
        return dx if residual is None else residual + dx, normed
    block = triton.next_power_of_2(x.shape[1])
    dx, normed = torch.empty_like(x), torch.empty_like(x)
    _rms_norm_backward_kernel[(len(x),)](
        grad, x, rstd, weight, x if residual is None else residual, dx, normed, x.shape[1], grad.stride(0),
        ADD=residual is not None, BLOCK=block, num_warps=_select_num_warps(block),
    )  # fmt: skip
    return dx, normed


def _select_num_warps(block: int) -> int:
    return 4 if block <= 2048 else 8


if triton is not None:
    from lorgnette.kernels.dropout import is_kept

    @triton.jit(do_not_specialize=["T", "rng_stream", "threshold"])
    @no_type_check
    def _add_rms_norm_kernel(
        x, delta, weight, summed, out, rstd, dropped, T, C, out_stride, eps, keys, rng_stream, threshold, dropout_scale,
        ADD: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        offs_c = tl.arange(0, BLOCK)
        mask_c = offs_c < C
        values = tl.load(x + row * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        if ADD:
            values += tl.load(delta + row * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
            # Norm what is stored, not the fp32 sum: the backward pass sees the rounded values only.
            rounded = values.to(summed.dtype.element_ty)
            tl.store(summed + row * C + offs_c, rounded, mask=mask_c)
            values = rounded.to(tl.float32)
        rstd_i = tl.rsqrt(tl.sum(values * values) / C + eps)
        tl.store(rstd + row, rstd_i)
        w = tl.load(weight + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        normed = (w * (values * rstd_i)).to(out.dtype.element_ty)
        tl.store(out + row * out_stride + offs_c, normed, mask=mask_c)
        # One dropped copy per projection, while the row is in registers.
        for i in tl.static_range(COUNT):
            kept = is_kept(keys + row, rng_stream + i, offs_c, threshold)
            masked = tl.where(kept, normed.to(tl.float32) * dropout_scale, 0.0)
            tl.store(dropped + (i * T + row) * C + offs_c, masked.to(dropped.dtype.element_ty), mask=mask_c)

    @triton.jit
    @no_type_check
    def _rms_norm_backward_kernel(
        grad, x, rstd, weight, residual, dx, normed, C, grad_stride, ADD: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        offs_c = tl.arange(0, BLOCK)
        mask_c = offs_c < C
        g = tl.load(grad + row * grad_stride + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        values = tl.load(x + row * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        w = tl.load(weight + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        wg = g * w
        rstd_i = tl.load(rstd + row)
        # The norm's output again, for the gradient of A: cheaper than keeping it since the forward pass.
        tl.store(normed + row * C + offs_c, (w * (values * rstd_i)).to(normed.dtype.element_ty), mask=mask_c)
        mean = tl.sum(wg * values) / C
        dx_i = rstd_i * (wg - values * rstd_i * rstd_i * mean)
        if ADD:
            dx_i += tl.load(residual + row * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        tl.store(dx + row * C + offs_c, dx_i.to(dx.dtype.element_ty), mask=mask_c)
