"""Residual addition and RMS norm, together: the residual stream is read and written once.

    x' = x + delta            xn = weight · x' / √(mean(x'²) + eps)            (Zhang & Sennrich 2019)

Sums are fp32 whatever the tensors are; each result is rounded once.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.kernels.dropout import DropoutSpec, MaskedGrads, add_masked_grads, apply_dropout, build_kernel_args

try:
    import triton
    import triton.language as tl
except ImportError:  # torch without CUDA comes without it
    triton = None


def add_rms_norm(
    x: Float[Tensor, "T C"],
    delta: Float[Tensor, "T C"] | None,
    weight: Float[Tensor, " C"],
    eps: float,
    out: Float[Tensor, "T C"],
    dropout_spec: DropoutSpec | None = None,
) -> tuple[Float[Tensor, "T C"], Float32[Tensor, " T"], Float[Tensor, "n T C"] | None]:
    """Writes xn into `out` (which may be columns of a wider matrix); returns x', 1 / √(mean(x'²) + eps), and, with
    `drop`, what `dropped` makes of xn."""
    if not x.is_cuda:
        summed = x if delta is None else x + delta
        normed, scale = rms_norm_reference(summed, weight, eps)
        out.copy_(normed)
        return (
            summed,
            scale,
            None if dropout_spec is None else apply_dropout(out, dropout_spec[1], dropout_spec[0], dropout_spec[2]),
        )
    summed = x if delta is None else torch.empty_like(x)
    scale = torch.empty(len(x), dtype=torch.float32, device=x.device)
    mask, count, salt = dropout_spec or (None, 0, 0)
    seen = None if mask is None else torch.empty(count, *x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    _add_rms_norm_kernel[(len(x),)](
        x, x if delta is None else delta, weight, summed, out, scale, x if seen is None else seen, len(x), x.shape[1],
        out.stride(0), eps, *build_kernel_args(mask, x, salt), ADD=delta is not None, COUNT=count, BLOCK=block,
        num_warps=_select_num_warps(block),
    )  # fmt: skip
    return summed, scale, seen


def rms_norm_backward(
    grad: Float[Tensor, "T C"],
    x: Float[Tensor, "T C"],
    rstd: Float32[Tensor, " T"],
    weight: Float[Tensor, " C"],
    residual: Float[Tensor, "T C"] | None = None,
    masked_grads: MaskedGrads | None = None,
) -> tuple[Float[Tensor, "T C"], Float[Tensor, "T C"]]:
    """The gradient of x' from that of xn (`grad`, perhaps columns of a wider matrix), and `residual`, the gradient that
    reaches x' past the norm; and xn again, the same numbers. The weight is frozen. What is `under` a mask joins `grad`.
    """
    if not x.is_cuda:
        made = rms_norm_backward_reference(grad, x, rstd, weight, masked_grads)
        normed = (weight.float() * (x.float() * rstd[:, None])).to(x.dtype)
        return made if residual is None else residual + made, normed
    block = triton.next_power_of_2(x.shape[1])
    out, normed = torch.empty_like(x), torch.empty_like(x)
    grads, mask, salt = masked_grads or (x[None], None, 0)
    _rms_norm_backward_kernel[(len(x),)](
        grad, x, rstd, weight, x if residual is None else residual, out, normed, grads, len(x), x.shape[1],
        grad.stride(0), *build_kernel_args(mask, x, salt), ADD=residual is not None, COUNT=0 if mask is None else len(grads),
        BLOCK=block, num_warps=_select_num_warps(block),
    )  # fmt: skip
    return out, normed


def rms_norm_reference(
    x: Float[Tensor, "T C"], weight: Float[Tensor, " C"], eps: float
) -> tuple[Float[Tensor, "T C"], Float32[Tensor, " T"]]:
    scale = torch.rsqrt(x.float().square().mean(-1) + eps)
    return (weight.float() * (x.float() * scale[:, None])).to(x.dtype), scale


def rms_norm_backward_reference(
    grad: Float[Tensor, "T C"],
    x: Float[Tensor, "T C"],
    rstd: Float32[Tensor, " T"],
    weight: Float[Tensor, " C"],
    masked_grads: MaskedGrads | None = None,
) -> Float[Tensor, "T C"]:
    """dx = s · (g·w) − x · s³ · mean(g·w·x)."""
    through = grad.float()
    if masked_grads is not None:
        through = through.clone()
        add_masked_grads(through, *masked_grads)
    through = through * weight.float()
    mean = (through * x.float()).mean(-1, keepdim=True)
    return (rstd[:, None] * (through - x.float() * rstd[:, None].square() * mean)).to(x.dtype)


def _select_num_warps(block: int) -> int:
    return 4 if block <= 2048 else 8


if triton is not None:
    from lorgnette.kernels.dropout import derive_stream_key, fmix32

    @triton.jit(do_not_specialize=["T", "salt", "threshold"])
    @no_type_check
    def _add_rms_norm_kernel(
        x, delta, weight, summed, out, scale, seen, T, C, out_stride, eps, key, salt, threshold, kept_scale,
        ADD: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, BLOCK)
        there = at < C
        value = tl.load(x + row * C + at, mask=there, other=0.0).to(tl.float32)
        if ADD:
            value += tl.load(delta + row * C + at, mask=there, other=0.0).to(tl.float32)
            rounded = value.to(summed.dtype.element_ty)
            tl.store(summed + row * C + at, rounded, mask=there)
            value = rounded.to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value) / C + eps)
        tl.store(scale + row, inverse)
        w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
        normed = (w * (value * inverse)).to(out.dtype.element_ty)
        tl.store(out + row * out_stride + at, normed, mask=there)
        for i in tl.static_range(COUNT):
            bits = fmix32((row * C + at).to(tl.uint32) ^ derive_stream_key(key, salt + i))
            kept = tl.where(bits >= threshold.to(tl.uint32), normed.to(tl.float32) * kept_scale, 0.0)
            tl.store(seen + (i * T + row) * C + at, kept.to(seen.dtype.element_ty), mask=there)

    @triton.jit(do_not_specialize=["T", "salt", "threshold"])
    @no_type_check
    def _rms_norm_backward_kernel(
        grad, x, scale, weight, residual, out, normed, grads, T, C, grad_stride, key, salt, threshold, kept_scale,
        ADD: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, BLOCK)
        there = at < C
        g = tl.load(grad + row * grad_stride + at, mask=there, other=0.0).to(tl.float32)
        for i in tl.static_range(COUNT):
            more = tl.load(grads + (i * T + row) * C + at, mask=there, other=0.0).to(tl.float32)
            bits = fmix32((row * C + at).to(tl.uint32) ^ derive_stream_key(key, salt + i))
            g += tl.where(bits >= threshold.to(tl.uint32), more * kept_scale, 0.0)
        value = tl.load(x + row * C + at, mask=there, other=0.0).to(tl.float32)
        w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
        through = g * w
        s = tl.load(scale + row)
        tl.store(normed + row * C + at, (w * (value * s)).to(normed.dtype.element_ty), mask=there)
        mean = tl.sum(through * value) / C
        made = s * (through - value * s * s * mean)
        if ADD:
            made += tl.load(residual + row * C + at, mask=there, other=0.0).to(tl.float32)
        tl.store(out + row * C + at, made.to(out.dtype.element_ty), mask=there)
