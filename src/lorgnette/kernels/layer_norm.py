"""LayerNorm and RMSNorm of a residual stream whose added biases are deferred.

    z = x + deferred_bias
    LayerNorm    y = weight · (z − mean(z)) / √(var(z) + eps) + bias          (Ba, Kiros & Hinton 2016)
    RMSNorm      y = weight · z / √(mean(z²) + eps)                           (Zhang & Sennrich 2019)

A matrix product that accumulates into the stream (beta = 1) cannot also add a bias. The biases left out so far are one
constant row, and this kernel adds it, because it reads the stream anyway. Sums are fp32; the result is rounded once.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from lorgnette.kernels.triton_import import tl, triton


def layer_norm(
    x: Float[Tensor, "N C"],
    deferred_bias: Float32[Tensor, " C"],
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    eps: float,
) -> Float[Tensor, "N C"]:
    """A new matrix in the weight's dtype; x is contiguous and unchanged."""
    if not x.is_cuda:
        shifted = x.float() + deferred_bias
        return functional.layer_norm(shifted, deferred_bias.shape, weight.float(), bias.float(), eps).to(weight.dtype)
    return _launch(x, deferred_bias, weight, bias, eps)


def rms_norm(
    x: Float[Tensor, "N C"], deferred_bias: Float32[Tensor, " C"], weight: Float[Tensor, " C"], eps: float
) -> Float[Tensor, "N C"]:
    """A new matrix in the weight's dtype; x is contiguous and unchanged."""
    if not x.is_cuda:
        shifted = x.float() + deferred_bias
        return functional.rms_norm(shifted, deferred_bias.shape, weight.float(), eps).to(weight.dtype)
    return _launch(x, deferred_bias, weight, None, eps)


def _launch(x: Tensor, deferred_bias: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """bias: None for RMSNorm."""
    out = torch.empty_like(x, dtype=weight.dtype)
    block = triton.next_power_of_2(x.shape[1])
    warps = min(max(block // 512, 1), 16)
    _norm_kernel[(len(x),)](
        x, deferred_bias, weight, weight if bias is None else bias, out, x.shape[1], eps, CENTER=bias is not None,
        BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out


if triton is not None:

    @triton.jit
    @no_type_check
    def _norm_kernel(x, deferred_bias, weight, bias, out, C, eps, CENTER: tl.constexpr, BLOCK: tl.constexpr):
        row_start = tl.program_id(0).to(tl.int64) * C
        offs_c = tl.arange(0, BLOCK)
        mask_c = offs_c < C
        values = tl.load(x + row_start + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        values += tl.load(deferred_bias + offs_c, mask=mask_c, other=0.0)
        # The row stays in registers, so the variance can be taken of centered values without a second read.
        if CENTER:
            values = tl.where(mask_c, values - tl.sum(values, 0) / C, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(values * values, 0) / C + eps)
        normed = values * rstd * tl.load(weight + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        if CENTER:
            normed += tl.load(bias + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        tl.store(out + row_start + offs_c, normed.to(out.dtype.element_ty), mask=mask_c)
