"""The activations of vision towers, two approximations of GELU (Hendrycks & Gimpel 2016).

    x · sigmoid(1.702 x)                                    in place
    x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))            behind a linear layer, within its matrix product

cuBLAS can fuse a bias and the second form into a matrix product, but not the first.
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, linear

from lorgnette.kernels.triton_import import tl, triton

_BLOCK = 2048


def quick_gelu_(x: Float[Tensor, "N M"]) -> None:
    """In place; x is contiguous. The result is rounded once."""
    if not x.is_cuda:
        x.copy_(x.float() * torch.sigmoid(1.702 * x.float()))
        return
    _quick_gelu_kernel[(triton.cdiv(x.numel(), _BLOCK),)](x, x.numel(), BLOCK=_BLOCK, num_warps=8)


def linear_gelu_tanh(
    x: Float[Tensor, "N C"], weight: Float[Tensor, "M C"], bias: Float[Tensor, " M"]
) -> Float[Tensor, "N M"]:
    """The second form of x·weightᵀ + bias. On CUDA the result is rounded once, and the sum is not in memory."""
    if not x.is_cuda:
        return gelu(linear(x, weight, bias), approximate="tanh")
    return torch._addmm_activation(bias, x, weight.T, use_gelu=True)  # the tanh form on CUDA alone


if triton is not None:

    @triton.jit
    @no_type_check
    def _quick_gelu_kernel(x, size, BLOCK: tl.constexpr):
        offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(x + offs, mask=offs < size, other=0.0).to(tl.float32)
        tl.store(x + offs, (values * tl.sigmoid(1.702 * values)).to(x.dtype.element_ty), mask=offs < size)
