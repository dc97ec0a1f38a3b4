"""SwiGLU: silu(gate) · up (Shazeer 2020), and its gradient, which makes the product again instead of keeping it."""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from lorgnette.kernels.dropout import DropoutSpec, MaskedGrads, apply_dropout, build_kernel_args

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

_BLOCK = 1024


def swiglu(
    gate_up: Float[Tensor, "T FF"], out: Float[Tensor, "T F"], dropout_spec: DropoutSpec | None = None
) -> Float[Tensor, "n T F"] | None:
    """out = silu(gate) · up, where gate_up is [gate | up] side by side; `out` may be columns of a wider matrix. With
    `drop`, of one projection, returns the product under the mask too."""
    width = gate_up.shape[1] // 2
    mask, count, salt = dropout_spec or (None, 0, 0)
    if not gate_up.is_cuda:
        out.copy_(swiglu_reference(gate_up))
        return None if mask is None else apply_dropout(out, count, mask, salt)
    seen = None if mask is None else gate_up.new_empty(count, len(gate_up), width)
    grid = (len(gate_up), triton.cdiv(width, _BLOCK))
    _swiglu_kernel[grid](
        gate_up, out, out if seen is None else seen, width, out.stride(0), *build_kernel_args(mask, gate_up, salt),
        DROP=mask is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return seen


def swiglu_backward(
    gate_up: Float[Tensor, "T FF"],
    grad: Float[Tensor, "T F"],
    out: Float[Tensor, "T F"],
    masked_grads: MaskedGrads | None = None,
) -> Float[Tensor, "T FF"]:
    """The gradient of gate and up, in their own place; the product of the forward is made again into `out`.

    What is `under` a mask joins `grad`; `out` is then the product under it.
    """
    width = gate_up.shape[1] // 2
    if not gate_up.is_cuda:
        return _swiglu_backward_reference(gate_up, grad, out, masked_grads)
    more, mask, salt = masked_grads or (grad, None, 0)
    grid = (len(gate_up), triton.cdiv(width, _BLOCK))
    _swiglu_backward_kernel[grid](
        gate_up, grad, more, out, width, grad.stride(0), out.stride(0), *build_kernel_args(mask, gate_up, salt),
        DROP=mask is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return gate_up


def _swiglu_backward_reference(
    gate_up: Float[Tensor, "T FF"],
    grad: Float[Tensor, "T F"],
    out: Float[Tensor, "T F"],
    masked_grads: MaskedGrads | None,
) -> Float[Tensor, "T FF"]:
    gate, up = gate_up.float().chunk(2, -1)
    out.copy_(swiglu_reference(gate_up))
    if masked_grads is not None:
        more, mask, salt = masked_grads
        kept = mask.build_mask(out, salt)
        out.copy_(out.float() * kept)
        grad = grad.float() + more[0].float() * kept
    g, sigmoid = grad.float(), gate.sigmoid()
    made = torch.cat([g * up * sigmoid * (1 + gate * (1 - sigmoid)), g * gate * sigmoid], 1)
    return gate_up.copy_(made)


def swiglu_reference(gate_up: Float[Tensor, "T FF"]) -> Float[Tensor, "T F"]:
    gate, up = gate_up.float().chunk(2, -1)
    return (silu(gate) * up).to(gate_up.dtype)


if triton is not None:
    from lorgnette.kernels.dropout import derive_stream_key, fmix32

    _NOT_SPECIALIZED = ["salt", "threshold"]

    @triton.jit(do_not_specialize=_NOT_SPECIALIZED)
    @no_type_check
    def _swiglu_kernel(
        gate_up, out, seen, F, out_stride, key, salt, threshold, scale, DROP: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        there = at < F
        gate = tl.load(gate_up + row * 2 * F + at, mask=there, other=0.0).to(tl.float32)
        up = tl.load(gate_up + row * 2 * F + F + at, mask=there, other=0.0).to(tl.float32)
        made = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
        tl.store(out + row * out_stride + at, made, mask=there)
        if DROP:
            bits = fmix32((row * F + at).to(tl.uint32) ^ derive_stream_key(key, salt))
            kept = tl.where(bits >= threshold.to(tl.uint32), made.to(tl.float32) * scale, 0.0)
            tl.store(seen + row * F + at, kept.to(out.dtype.element_ty), mask=there)

    @triton.jit(do_not_specialize=_NOT_SPECIALIZED)
    @no_type_check
    def _swiglu_backward_kernel(
        gate_up, grad, dropped_grad, out, F, grad_stride, out_stride, key, salt, threshold, scale,
        DROP: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        there = at < F
        kind = out.dtype.element_ty
        gate = tl.load(gate_up + row * 2 * F + at, mask=there, other=0.0).to(tl.float32)
        up = tl.load(gate_up + row * 2 * F + F + at, mask=there, other=0.0).to(tl.float32)
        g = tl.load(grad + row * grad_stride + at, mask=there, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        gated = gate * sigmoid
        made = (gated * up).to(kind)
        if DROP:
            bits = fmix32((row * F + at).to(tl.uint32) ^ derive_stream_key(key, salt))
            kept = bits >= threshold.to(tl.uint32)
            made = tl.where(kept, made.to(tl.float32) * scale, 0.0).to(kind)
            more = tl.load(dropped_grad + row * F + at, mask=there, other=0.0).to(tl.float32)
            g += tl.where(kept, more * scale, 0.0)
        tl.store(out + row * out_stride + at, made, mask=there)
        tl.store(gate_up + row * 2 * F + at, (g * up * sigmoid * (1 + gate * (1 - sigmoid))).to(kind), mask=there)
        tl.store(gate_up + row * 2 * F + F + at, (g * gated).to(kind), mask=there)
