"""Dropout on the adapter's inputs. Masks are recomputed from a counter, never stored.

PEFT drops the input of each projection separately, so query, key and value see three masks of one matrix. The mask of
an element is a hash (fmix32, the finalizer of MurmurHash3) of its index and a key that is drawn for every micro-batch.
The backward pass recomputes the same masks, and CPU and GPU agree.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton

_BLOCK = 512
_UINT32_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of one micro-batch. key: drawn for it, on its device; rate: the share of elements that is dropped.

    `rng_stream` numbers the masks of a micro-batch: every projection of the model has its own.
    """

    key: Int[Tensor, ""]
    rate: float

    @property
    def threshold(self) -> int:
        """An element whose 32-bit hash is below it is dropped."""
        return round(self.rate * 2**32)

    @property
    def scale(self) -> float:
        """Factor of the elements that are kept."""
        return 1 / (1 - self.rate)

    def build_mask(self, x: Float[Tensor, "T C"], rng_stream: int) -> Float32[Tensor, "T C"]:
        """The reference: 0 or `scale` for every element of x."""
        index = torch.arange(x.numel(), device=x.device).view(x.shape)
        bits = _fmix32(index ^ _fmix32((self.key.long() + rng_stream * 0x9E3779B9) & _UINT32_MASK))
        return (bits >= self.threshold).float() * self.scale


DropoutSpec = tuple[Dropout, int, int]
"""(dropout, n, rng_stream): n projections of one input, with the masks rng_stream, …, rng_stream + n − 1."""
MaskedGrads = tuple[Float[Tensor, "n T C"], Dropout, int]
"""(grads, dropout, rng_stream): per-projection input gradients that still have to be masked and summed into dx."""


def apply_dropout(x: Float[Tensor, "T C"], count: int, dropout: Dropout, rng_stream: int) -> Float[Tensor, "count T C"]:
    """x under `count` masks, from `rng_stream` on. `x` may be columns of a wider matrix."""
    if not x.is_cuda:
        return torch.stack([(x.float() * dropout.build_mask(x, rng_stream + i)).to(x.dtype) for i in range(count)])
    out = torch.empty(count, *x.shape, dtype=x.dtype, device=x.device)
    grid = (len(x), triton.cdiv(x.shape[1], _BLOCK))
    _apply_dropout_kernel[grid](
        x, out, dropout.key, rng_stream, dropout.threshold, dropout.scale, len(x), x.shape[1], x.stride(0),
        COUNT=count, BLOCK=_BLOCK, num_warps=2,
    )  # fmt: skip
    return out


def add_masked_grads(
    out: Float[Tensor, "T C"], grads: Float[Tensor, "count T C"], dropout: Dropout, rng_stream: int
) -> None:
    """out += Σᵢ maskᵢ · gradsᵢ, with the masks of `apply_dropout`: the gradient of x. `out` may be columns."""
    if not out.is_cuda:
        for i, grad in enumerate(grads):
            out.add_((grad.float() * dropout.build_mask(out, rng_stream + i)).to(out.dtype))
        return
    grid = (len(out), triton.cdiv(out.shape[1], _BLOCK))
    _add_masked_grads_kernel[grid](
        out, grads, dropout.key, rng_stream, dropout.threshold, dropout.scale, len(out), out.shape[1], out.stride(0),
        COUNT=len(grads), BLOCK=_BLOCK, num_warps=2,
    )  # fmt: skip


def build_kernel_args(dropout: Dropout | None, like: Tensor, rng_stream: int) -> tuple[Tensor, int, int, float]:
    """(key, rng_stream, threshold, scale) for a kernel; placeholders without dropout."""
    return (like, 0, 0, 1.0) if dropout is None else (dropout.key, rng_stream, dropout.threshold, dropout.scale)


def _fmix32(bits: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B & _UINT32_MASK
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35 & _UINT32_MASK
    return bits ^ (bits >> 16)


if triton is not None:

    @triton.jit
    @no_type_check
    def fmix32(bits):
        bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
        bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
        return bits ^ (bits >> 16)

    @triton.jit
    @no_type_check
    def derive_stream_key(key, rng_stream):
        return fmix32((tl.load(key) + rng_stream.to(tl.int64) * 0x9E3779B9).to(tl.uint32))

    @triton.jit(do_not_specialize=["rng_stream", "T", "threshold"])
    @no_type_check
    def _apply_dropout_kernel(
        x, out, key, rng_stream, threshold, scale, T, C, stride, COUNT: tl.constexpr, BLOCK: tl.constexpr
    ):
        """One row and block of columns."""
        row = tl.program_id(0).to(tl.int64)
        offs_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask_c = offs_c < C
        scaled = tl.load(x + row * stride + offs_c, mask=mask_c, other=0.0).to(tl.float32) * scale
        index = (row * C + offs_c).to(tl.uint32)
        # All masks in one program: x is read once.
        for i in tl.static_range(COUNT):
            bits = fmix32(index ^ derive_stream_key(key, rng_stream + i))
            masked = tl.where(bits >= threshold.to(tl.uint32), scaled, 0.0)
            tl.store(out + (i * T + row) * C + offs_c, masked.to(out.dtype.element_ty), mask=mask_c)

    @triton.jit(do_not_specialize=["rng_stream", "T", "threshold"])
    @no_type_check
    def _add_masked_grads_kernel(
        out, grads, key, rng_stream, threshold, scale, T, C, stride, COUNT: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        offs_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask_c = offs_c < C
        acc = tl.load(out + row * stride + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        index = (row * C + offs_c).to(tl.uint32)
        # The masks of the forward pass, recomputed from the same indices and key.
        for i in tl.static_range(COUNT):
            grad = tl.load(grads + (i * T + row) * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
            bits = fmix32(index ^ derive_stream_key(key, rng_stream + i))
            acc += tl.where(bits >= threshold.to(tl.uint32), grad * scale, 0.0)
        tl.store(out + row * stride + offs_c, acc.to(out.dtype.element_ty), mask=mask_c)
