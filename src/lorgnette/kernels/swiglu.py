"""SwiGLU, silu(gate) · up (Shazeer 2020), and its gradient, which recomputes the product instead of keeping it.

With dropout on down_proj's adapter, the product is multiplied by the LoRA factor A where it is computed, under the mask
(kernels/dropout.py), so it is not written under the mask and read again.
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from lorgnette.kernels.dropout import Dropout, MaskedGrads, apply_dropout, build_kernel_args
from lorgnette.kernels.dropped_products import select_block_r
from lorgnette.kernels.tiles import has_tensor_cores
from lorgnette.kernels.triton_import import tl, triton

_BLOCK = 1024
_BLOCK_T, _BLOCK_F, _NUM_SPLITS = 64, 64, 10
"""Of the kernel that multiplies by A: the product's columns are divided among programs, whose sums are then added."""
_MAX_RANK = 128
"""Of that kernel: for more ranks it would read gate and up again."""
_REDUCE_BLOCK = 1024


def swiglu(gate_up: Float[Tensor, "T FF"], out: Float[Tensor, "T F"]) -> None:
    """out = silu(gate) · up, from gate_up = [gate | up]. `out` may be columns of a wider matrix."""
    if not gate_up.is_cuda:
        out.copy_(swiglu_reference(gate_up))
        return
    width = gate_up.shape[1] // 2
    _swiglu_kernel[(len(gate_up), triton.cdiv(width, _BLOCK))](gate_up, out, width, out.stride(0), BLOCK=_BLOCK)


def swiglu_project(
    gate_up: Float[Tensor, "T FF"],
    out: Float[Tensor, "T F"],
    scaled_a: Float[Tensor, "1 r F"],
    dropout: Dropout,
    rng_stream: int,
    u: Float[Tensor, "T r"],
    copy: Float[Tensor, "T r"] | None = None,
) -> None:
    """`swiglu`, and u = (mask ∘ out) · scaled_aᵀ, also into `copy`. `out` and `u` may be columns."""
    T, (_, rank, width) = len(gate_up), scaled_a.shape
    if rank > _MAX_RANK or not has_tensor_cores(gate_up):
        swiglu(gate_up, out)
        dropped = apply_dropout(out, 1, dropout, rng_stream)
        torch.bmm(dropped, scaled_a.mT, out=u[None])
        if copy is not None:
            copy.copy_(u)
        return
    split_width = triton.cdiv(triton.cdiv(width, _NUM_SPLITS), _BLOCK_F) * _BLOCK_F
    partials = torch.empty(_NUM_SPLITS, T, rank, dtype=torch.float32, device=gate_up.device)
    _swiglu_project_kernel[(triton.cdiv(T, _BLOCK_T), _NUM_SPLITS)](
        gate_up, out, scaled_a, partials, T, width, rank, out.stride(0), split_width, dropout.keys, rng_stream,
        dropout.threshold, dropout.scale, BLOCK_T=_BLOCK_T, BLOCK_F=_BLOCK_F, BLOCK_R=select_block_r(rank, _MAX_RANK),
        num_warps=8, num_stages=3,
    )  # fmt: skip
    _add_partials_kernel[(triton.cdiv(T * rank, _REDUCE_BLOCK),)](
        partials, u, u if copy is None else copy, T, rank, u.stride(0), COPY=copy is not None, COUNT=_NUM_SPLITS,
        BLOCK=_REDUCE_BLOCK,
    )  # fmt: skip


def swiglu_backward(
    gate_up: Float[Tensor, "T FF"],
    grad: Float[Tensor, "T F"],
    out: Float[Tensor, "T F"],
    masked_grads: MaskedGrads | None = None,
) -> Float[Tensor, "T FF"]:
    """Overwrite `gate_up` with its gradient and write the recomputed product into `out`.

    If `masked_grads` is given, it is masked and added to `grad`, and `out` is the product under the mask.
    """
    width = gate_up.shape[1] // 2
    if not gate_up.is_cuda:
        gate, up = gate_up.float().chunk(2, -1)
        out.copy_(swiglu_reference(gate_up))
        if masked_grads is not None:
            dropped_grad, dropout, rng_stream = masked_grads
            mask = dropout.build_mask(out, rng_stream)
            out.copy_(out.float() * mask)
            grad = grad.float() + dropped_grad[0].float() * mask
        g, sigmoid = grad.float(), gate.sigmoid()
        return gate_up.copy_(torch.cat([g * up * sigmoid * (1 + gate * (1 - sigmoid)), g * gate * sigmoid], 1))
    grads, spec, stream = masked_grads or (grad, None, 0)
    grid = (len(gate_up), triton.cdiv(width, _BLOCK))
    _swiglu_backward_kernel[grid](
        gate_up, grad, grads, out, width, grad.stride(0), out.stride(0),
        *build_kernel_args(spec, gate_up, stream), DROPOUT=spec is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return gate_up


def swiglu_reference(gate_up: Float[Tensor, "T FF"]) -> Float[Tensor, "T F"]:
    gate, up = gate_up.float().chunk(2, -1)
    return (silu(gate) * up).to(gate_up.dtype)


if triton is not None:
    from lorgnette.kernels.dropout import hash_row, is_element_kept, is_kept

    @triton.jit
    @no_type_check
    def _swiglu_kernel(gate_up, out, F, out_stride, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        offs_f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask_f = offs_f < F
        gate = tl.load(gate_up + row * 2 * F + offs_f, mask=mask_f, other=0.0).to(tl.float32)
        up = tl.load(gate_up + row * 2 * F + F + offs_f, mask=mask_f, other=0.0).to(tl.float32)
        product = gate * tl.sigmoid(gate) * up
        tl.store(out + row * out_stride + offs_f, product.to(out.dtype.element_ty), mask=mask_f)

    @triton.jit(do_not_specialize=["T", "rng_stream", "threshold"])
    @no_type_check
    def _swiglu_project_kernel(
        gate_up, out, scaled_a, partials, T, F, rank, out_stride, split_width, keys, rng_stream, threshold,
        dropout_scale, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_R: tl.constexpr,
    ):  # fmt: skip
        """BLOCK_T tokens, some columns of the product, and their part of u."""
        offs_t, split = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(1)
        offs_r = tl.arange(0, BLOCK_R)
        mask_t, mask_r, rows = offs_t < T, offs_r < rank, offs_t.to(tl.int64)[:, None]
        dtype = out.dtype.element_ty
        row_hash = hash_row(tl.load(keys + offs_t, mask=mask_t, other=0), rng_stream)[:, None]
        acc = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
        for start in range(split * split_width, tl.minimum((split + 1) * split_width, F), BLOCK_F):
            offs_f = start + tl.arange(0, BLOCK_F)
            mask_f = (offs_f < F)[None, :]
            mask, ptrs = mask_t[:, None] & mask_f, gate_up + rows * (2 * F) + offs_f[None, :]
            gate = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
            up = tl.load(ptrs + F, mask=mask, other=0.0).to(tl.float32)
            product = (gate * tl.sigmoid(gate) * up).to(dtype)
            tl.store(out + rows * out_stride + offs_f[None, :], product, mask=mask)
            kept = is_element_kept(row_hash, offs_f[None, :], threshold)
            masked = tl.where(kept, product.to(tl.float32) * dropout_scale, 0.0).to(dtype)
            a = tl.load(scaled_a + offs_r[:, None] * F + offs_f[None, :], mask=mask_r[:, None] & mask_f, other=0.0)
            acc = tl.dot(masked, tl.trans(a), acc)
        ptrs = partials + (split.to(tl.int64) * T + rows) * rank + offs_r[None, :]
        tl.store(ptrs, acc, mask=mask_t[:, None] & mask_r[None, :])

    @triton.jit(do_not_specialize=["T"])
    @no_type_check
    def _add_partials_kernel(
        partials, u, copy, T, rank, u_stride, COPY: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr
    ):
        """u of some elements, in a fixed order of the parts."""
        offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        size = T.to(tl.int64) * rank
        mask, total = offs < size, tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(COUNT):
            total += tl.load(partials + i * size + offs, mask=mask, other=0.0)
        values = total.to(u.dtype.element_ty)
        tl.store(u + offs // rank * u_stride + offs % rank, values, mask=mask)
        if COPY:
            tl.store(copy + offs, values, mask=mask)

    @triton.jit(do_not_specialize=["rng_stream", "threshold"])
    @no_type_check
    def _swiglu_backward_kernel(
        gate_up, grad, dropped_grad, out, F, grad_stride, out_stride, keys, rng_stream, threshold, scale,
        DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        offs_f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask_f = offs_f < F
        dtype = out.dtype.element_ty
        gate = tl.load(gate_up + row * 2 * F + offs_f, mask=mask_f, other=0.0).to(tl.float32)
        up = tl.load(gate_up + row * 2 * F + F + offs_f, mask=mask_f, other=0.0).to(tl.float32)
        g = tl.load(grad + row * grad_stride + offs_f, mask=mask_f, other=0.0).to(tl.float32)
        # The product again, rounded as in the forward pass: it is the input of down_proj's LoRA gradients.
        sigmoid = tl.sigmoid(gate)
        silu_gate = gate * sigmoid
        product = (silu_gate * up).to(dtype)
        if DROPOUT:
            kept = is_kept(keys + row, rng_stream, offs_f, threshold)
            product = tl.where(kept, product.to(tl.float32) * scale, 0.0).to(dtype)
            masked_grad = tl.load(dropped_grad + row * F + offs_f, mask=mask_f, other=0.0).to(tl.float32)
            g += tl.where(kept, masked_grad * scale, 0.0)
        tl.store(out + row * out_stride + offs_f, product, mask=mask_f)
        # gate and up are read for the last time: their gradients take their place.
        tl.store(gate_up + row * 2 * F + offs_f, (g * up * sigmoid * (1 + gate * (1 - sigmoid))).to(dtype), mask=mask_f)
        tl.store(gate_up + row * 2 * F + F + offs_f, (g * silu_gate).to(dtype), mask=mask_f)
