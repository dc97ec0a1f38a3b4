"""LayerNorm of a residual stream whose added biases are deferred.

    y = weight · (x + deferred_bias − mean) / √(var + eps) + bias             (Ba, Kiros & Hinton 2016)

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
    """A new matrix; x is contiguous and unchanged."""
    if not x.is_cuda:
        shifted = x.float() + deferred_bias
        return functional.layer_norm(shifted, deferred_bias.shape, weight.float(), bias.float(), eps).to(x.dtype)
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    warps = min(max(block // 512, 1), 16)
    _layer_norm_kernel[(len(x),)](x, deferred_bias, weight, bias, out, x.shape[1], eps, BLOCK=block, num_warps=warps)
    return out


if triton is not None:

    @triton.jit
    @no_type_check
    def _layer_norm_kernel(x, deferred_bias, weight, bias, out, C, eps, BLOCK: tl.constexpr):
        row_start = tl.program_id(0).to(tl.int64) * C
        offs_c = tl.arange(0, BLOCK)
        mask_c = offs_c < C
        values = tl.load(x + row_start + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        values += tl.load(deferred_bias + offs_c, mask=mask_c, other=0.0)
        # The row stays in registers, so the variance can be taken of centered values without a second read.
        centered = tl.where(mask_c, values - tl.sum(values, 0) / C, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, 0) / C + eps)
        w = tl.load(weight + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        b = tl.load(bias + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        tl.store(out + row_start + offs_c, (centered * rstd * w + b).to(out.dtype.element_ty), mask=mask_c)
