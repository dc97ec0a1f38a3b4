"""SwiGLU, silu(gate) · up (Shazeer 2020), and its gradient, which recomputes the product instead of keeping it."""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from lorgnette.kernels.dropout import DropoutSpec, MaskedGrads, apply_dropout, build_kernel_args
from lorgnette.kernels.triton_import import tl, triton

_BLOCK = 1024


def swiglu(
    gate_up: Float[Tensor, "T FF"], out: Float[Tensor, "T F"], dropout_spec: DropoutSpec | None = None
) -> Float[Tensor, "n T F"] | None:
    """out = silu(gate) · up, from gate_up = [gate | up]. `out` may be columns of a wider matrix.

    With `dropout_spec`, of one projection, returns the product under its mask.
    """
    width = gate_up.shape[1] // 2
    dropout, count, rng_stream = dropout_spec or (None, 0, 0)
    if not gate_up.is_cuda:
        out.copy_(swiglu_reference(gate_up))
        return None if dropout is None else apply_dropout(out, count, dropout, rng_stream)
    dropped = None if dropout is None else gate_up.new_empty(count, len(gate_up), width)
    grid = (len(gate_up), triton.cdiv(width, _BLOCK))
    _swiglu_kernel[grid](
        gate_up, out, out if dropped is None else dropped, width, out.stride(0),
        *build_kernel_args(dropout, gate_up, rng_stream), DROPOUT=dropout is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return dropped


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
    from lorgnette.kernels.dropout import is_kept

    _NOT_SPECIALIZED = ["rng_stream", "threshold"]

    @triton.jit(do_not_specialize=_NOT_SPECIALIZED)
    @no_type_check
    def _swiglu_kernel(
        gate_up, out, dropped, F, out_stride, keys, rng_stream, threshold, scale,
        DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        offs_f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask_f = offs_f < F
        gate = tl.load(gate_up + row * 2 * F + offs_f, mask=mask_f, other=0.0).to(tl.float32)
        up = tl.load(gate_up + row * 2 * F + F + offs_f, mask=mask_f, other=0.0).to(tl.float32)
        product = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
        tl.store(out + row * out_stride + offs_f, product, mask=mask_f)
        if DROPOUT:
            kept = is_kept(keys + row, rng_stream, offs_f, threshold)
            masked = tl.where(kept, product.to(tl.float32) * scale, 0.0)
            tl.store(dropped + row * F + offs_f, masked.to(out.dtype.element_ty), mask=mask_f)

    @triton.jit(do_not_specialize=_NOT_SPECIALIZED)
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
