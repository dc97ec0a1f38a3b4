"""LayerNorm of a residual stream that leaves out the biases added to it.

    y = weight · (x + shift − mean) / √(var + eps) + bias             (Ba, Kiros & Hinton 2016)

A matrix product that adds onto the stream (β = 1) has no room for a bias too. The biases added so far are a constant
row, `shift`, and come in here, where the stream is read anyway. Sums are fp32; the result is rounded once.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

try:
    import triton
    import triton.language as tl
except ImportError:  # torch without CUDA comes without it
    triton = None


def layer_norm(
    x: Float[Tensor, "N C"],
    deferred_bias: Float32[Tensor, " C"],
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    eps: float,
) -> Float[Tensor, "N C"]:
    """A new matrix; x is contiguous and stays."""
    if not x.is_cuda:
        return layer_norm_reference(x, deferred_bias, weight, bias, eps)
    made = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _layer_norm_kernel[(len(x),)](
        x, deferred_bias, weight, bias, made, x.shape[1], eps, BLOCK=block, num_warps=_select_num_warps(block)
    )
    return made


def layer_norm_reference(
    x: Float[Tensor, "N C"],
    deferred_bias: Float32[Tensor, " C"],
    weight: Float[Tensor, " C"],
    bias: Float[Tensor, " C"],
    eps: float,
) -> Float[Tensor, "N C"]:
    return functional.layer_norm(x.float() + deferred_bias, deferred_bias.shape, weight.float(), bias.float(), eps).to(
        x.dtype
    )


def _select_num_warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


if triton is not None:

    @triton.jit
    @no_type_check
    def _layer_norm_kernel(x, shift, weight, bias, made, C, eps, BLOCK: tl.constexpr):
        start = tl.program_id(0).to(tl.int64) * C
        at = tl.arange(0, BLOCK)
        inside = at < C
        value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(shift + at, mask=inside, other=0.0)
        centred = tl.where(inside, value - tl.sum(value, 0) / C, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / C + eps)
        w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(made + start + at, (centred * scale * w + b).to(made.dtype.element_ty), mask=inside)
