"""SwiGLU: silu(gate) · up (Shazeer 2020), and its gradient, which makes the product again instead of keeping it."""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from lorgnette.model.kernels.dropout import Mask, dropped
from lorgnette.model.kernels.product import Product

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

_BLOCK = 1024
_TILE = {"BT": 32, "BC": 128, "num_warps": 4}


def swiglu(
    gate_up: Float[Tensor, "T FF"], out: Float[Tensor, "T F"], mask: Mask | None = None, salt: int = 0
) -> Float[Tensor, "1 T F"] | None:
    """out = silu(gate) · up, where gate_up is [gate | up] side by side; `out` may be columns of a wider matrix. With a
    mask, returns the product under it too."""
    width = gate_up.shape[1] // 2
    if not gate_up.is_cuda:
        out.copy_(swiglu_reference(gate_up))
        return None if mask is None else dropped(out, 1, mask, salt)
    seen = None if mask is None else gate_up.new_empty(1, len(gate_up), width)
    grid = (len(gate_up), triton.cdiv(width, _BLOCK))
    _swiglu[grid](
        gate_up, out, out if seen is None else seen, width, out.stride(0), *_drawing(mask, gate_up, salt),
        DROP=mask is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return seen


def swiglu_backward(
    gate_up: Float[Tensor, "T FF"], grad: Float[Tensor, "T F"], out: Float[Tensor, "T F"], added: Product | None = None
) -> Float[Tensor, "T FF"]:
    """The gradient of gate and up, in their own place, from the product's: `grad` and what is `added` to it.

    The product of the forward is made again into `out`, under the mask of what is added, if there is one.
    """
    if not gate_up.is_cuda:
        return _backward_reference(gate_up, grad, out, added)
    T, F = out.shape
    u, a, mask, salt = (gate_up[None], gate_up[None], None, 0) if added is None else (
        added.u, added.a, added.mask, added.salt
    )  # fmt: skip
    _swiglu_backward[(triton.cdiv(F, _TILE["BC"]), triton.cdiv(T, _TILE["BT"]))](
        gate_up, grad, u, a, out, T, F, 0 if added is None else u.shape[2], grad.stride(0), u.stride(1), out.stride(0),
        *_drawing(mask, gate_up, salt), DROP=mask is not None, BR=16 if added is None else added.block, **_TILE,
    )  # fmt: skip
    return gate_up


def _drawing(mask: Mask | None, like: Tensor, salt: int) -> tuple[Tensor, int, int, float]:
    """key, salt, threshold and scale for a kernel, which does not look at them without a mask."""
    return (like, 0, 0, 1.0) if mask is None else (mask.key, salt, mask.threshold, mask.scale)


def _backward_reference(
    gate_up: Float[Tensor, "T FF"], grad: Float[Tensor, "T F"], out: Float[Tensor, "T F"], added: Product | None
) -> Float[Tensor, "T FF"]:
    gate, up = gate_up.float().chunk(2, -1)
    out.copy_(swiglu_reference(gate_up))
    g, sigmoid = grad.float(), gate.sigmoid()
    if added is not None:
        g = g + added.made()
        if added.mask is not None:
            out.copy_(out.float() * added.mask.of(out, added.salt))
    made = torch.cat([g * up * sigmoid * (1 + gate * (1 - sigmoid)), g * gate * sigmoid], 1)
    return gate_up.copy_(made)


def swiglu_reference(gate_up: Float[Tensor, "T FF"]) -> Float[Tensor, "T F"]:
    gate, up = gate_up.float().chunk(2, -1)
    return (silu(gate) * up).to(gate_up.dtype)


if triton is not None:
    from lorgnette.model.kernels.dropout import mixed, salted
    from lorgnette.model.kernels.product import tile

    _DRAWN = ["salt", "threshold"]

    @triton.jit(do_not_specialize=_DRAWN)
    @no_type_check
    def _swiglu(
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
            bits = mixed((row * F + at).to(tl.uint32) ^ salted(key, salt))
            kept = tl.where(bits >= threshold.to(tl.uint32), made.to(tl.float32) * scale, 0.0)
            tl.store(seen + row * F + at, kept.to(out.dtype.element_ty), mask=there)

    @triton.jit(do_not_specialize=[*_DRAWN, "T"])
    @no_type_check
    def _swiglu_backward(
        gate_up, grad, u, a, out, T, F, R, grad_stride, u_stride, out_stride, key, salt, threshold, scale,
        DROP: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(0) * BC + tl.arange(0, BC)
        row = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT)
        there = (row < T)[:, None] & (column < F)[None, :]
        kind = out.dtype.element_ty
        added = tile(u, a, row, column, T, F, R, u_stride, BT, BC, BR)
        at = gate_up + row[:, None] * 2 * F + column[None, :]
        gate = tl.load(at, mask=there, other=0.0).to(tl.float32)
        up = tl.load(at + F, mask=there, other=0.0).to(tl.float32)
        g = tl.load(grad + row[:, None] * grad_stride + column[None, :], mask=there, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        gated = gate * sigmoid
        made = (gated * up).to(kind)
        if DROP:
            bits = mixed((row[:, None] * F + column[None, :]).to(tl.uint32) ^ salted(key, salt))
            kept = bits >= threshold.to(tl.uint32)
            made = tl.where(kept, made.to(tl.float32) * scale, 0.0).to(kind)
            added = tl.where(kept, added * scale, 0.0)
        g += added
        tl.store(out + row[:, None] * out_stride + column[None, :], made, mask=there)
        tl.store(at, (g * up * sigmoid * (1 + gate * (1 - sigmoid))).to(kind), mask=there)
        tl.store(at + F, (g * gated).to(kind), mask=there)
