"""The gradient of a linear layer's input, through its LoRA factors A and their dropout: dx += Σᵢ maskᵢ ∘ (duᵢ · sAᵢ).

Every projection has its own mask (kernels/dropout.py). A program computes it on what it has multiplied, so the products
are not written and read again.

    T tokens, I inputs, n projections of rank r, R = n·r
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from lorgnette.kernels.dropout import Dropout, add_masked_grads
from lorgnette.kernels.tiles import has_tensor_cores
from lorgnette.kernels.triton_import import tl, triton

_BLOCK_T, _BLOCK_I = 64, 64


def add_dropped_products(
    dx: Float[Tensor, "T I"],
    du: Float[Tensor, "T R"],
    scaled_a: Float[Tensor, "n r I"],
    dropout: Dropout,
    rng_stream: int,
) -> None:
    """Add x's gradient to `dx`. Both may be columns of a wider matrix."""
    n, rank, width = scaled_a.shape
    if not has_tensor_cores(dx):
        products = torch.bmm(du.view(len(du), n, rank).transpose(0, 1), scaled_a)
        add_masked_grads(dx, products, dropout, rng_stream)
        return
    grid = (triton.cdiv(len(dx), _BLOCK_T), triton.cdiv(width, _BLOCK_I))
    _add_dropped_products_kernel[grid](
        dx, du, scaled_a, dropout.keys, rng_stream, dropout.threshold, dropout.scale, len(dx), width, rank,
        dx.stride(0), du.stride(0), COUNT=n, BLOCK_T=_BLOCK_T, BLOCK_I=_BLOCK_I,
        BLOCK_R=select_block_r(rank), num_warps=4, num_stages=2,
    )  # fmt: skip


def select_block_r(rank: int, most: int = 64) -> int:
    """Ranks that a program multiplies at a time."""
    return max(16, min(most, int(triton.next_power_of_2(rank))))


if triton is not None:
    from lorgnette.kernels.dropout import hash_row, is_element_kept

    @triton.jit(do_not_specialize=["T", "rng_stream", "threshold"])
    @no_type_check
    def _add_dropped_products_kernel(
        dx, du, scaled_a, keys, rng_stream, threshold, dropout_scale, T, width, rank, dx_stride, du_stride,
        COUNT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr,
    ):  # fmt: skip
        """BLOCK_T tokens and BLOCK_I columns, of all projections."""
        offs_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
        offs_i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
        mask_t, mask_i, rows = (offs_t < T)[:, None], (offs_i < width)[None, :], offs_t.to(tl.int64)[:, None]
        ptrs = dx + rows * dx_stride + offs_i[None, :]
        total = tl.load(ptrs, mask=mask_t & mask_i, other=0.0).to(tl.float32)
        key = tl.load(keys + offs_t, mask=offs_t < T, other=0)
        for i in tl.static_range(COUNT):
            product = tl.zeros((BLOCK_T, BLOCK_I), tl.float32)
            for start in range(0, rank, BLOCK_R):
                offs_r = start + tl.arange(0, BLOCK_R)
                mask_r, offs_u = offs_r < rank, i * rank + offs_r
                du_i = tl.load(du + rows * du_stride + offs_u[None, :], mask=mask_t & mask_r[None, :], other=0.0)
                a = tl.load(
                    scaled_a + offs_u[:, None] * width + offs_i[None, :], mask=mask_r[:, None] & mask_i, other=0.0
                )
                product = tl.dot(du_i, a, product)
            kept = is_element_kept(hash_row(key, rng_stream + i)[:, None], offs_i[None, :], threshold)
            total += tl.where(kept, product * dropout_scale, 0.0)
        tl.store(ptrs, total.to(dx.dtype.element_ty), mask=mask_t & mask_i)
