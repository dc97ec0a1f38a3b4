"""The vision tower's activation, x · sigmoid(1.702 x), in place (the sigmoid form of Hendrycks & Gimpel 2016).

cuBLAS can fuse a bias and the tanh form of GELU into a matrix product, but not this form.
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton

_BLOCK = 2048


def quick_gelu_(x: Float[Tensor, "N M"]) -> None:
    """In place; x is contiguous. The result is rounded once."""
    if not x.is_cuda:
        x.copy_(x.float() * torch.sigmoid(1.702 * x.float()))
        return
    _quick_gelu_kernel[(triton.cdiv(x.numel(), _BLOCK),)](x, x.numel(), BLOCK=_BLOCK, num_warps=8)


if triton is not None:

    @triton.jit
    @no_type_check
    def _quick_gelu_kernel(x, size, BLOCK: tl.constexpr):
        offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(x + offs, mask=offs < size, other=0.0).to(tl.float32)
        tl.store(x + offs, (values * tl.sigmoid(1.702 * values)).to(x.dtype.element_ty), mask=offs < size)
