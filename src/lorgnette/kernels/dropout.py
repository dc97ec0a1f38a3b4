"""Dropout on the adapter's inputs, one mask a projection, made from a counter instead of kept.

PEFT drops each projection's input for itself, so query, key and value see three masks of one matrix. An element's mask
is a hash (MurmurHash3's finalizer, fmix32) of its place and of a key that is drawn for every pass and layer: the
backward pass makes the same masks again, and a CPU and a GPU make the same ones.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

_BLOCK = 512
_UINT32_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Dropout:
    """A pass's dropout. key: drawn for the pass, on its device; rate: the share that is dropped.

    Which mask of the pass is meant, a `salt` says: a number that no other projection of the model has.
    """

    key: Int[Tensor, ""]
    rate: float

    @property
    def threshold(self) -> int:
        """An element whose 32 hashed bits are below is dropped."""
        return round(self.rate * 2**32)

    @property
    def scale(self) -> float:
        """What is kept is multiplied with it."""
        return 1 / (1 - self.rate)

    def build_mask(self, x: Float[Tensor, "T C"], rng_stream: int) -> Float32[Tensor, "T C"]:
        """The reference: 0 or `scale` for every element of x."""
        place = torch.arange(x.numel(), device=x.device).view(x.shape)
        bits = _fmix32(place ^ _fmix32((self.key.long() + rng_stream * 0x9E3779B9) & _UINT32_MASK))
        return (bits >= self.threshold).float() * self.scale


DropoutSpec = tuple[Dropout, int, int]
"""How a matrix's projections see its input: the mask, how many they are, the first one's salt."""
MaskedGrads = tuple[Float[Tensor, "n T C"], Dropout, int]
"""The gradients by an input as each projection saw it, the mask, the first one's salt: what `add_dropped` adds up."""


def apply_dropout(x: Float[Tensor, "T C"], count: int, dropout: Dropout, rng_stream: int) -> Float[Tensor, "count T C"]:
    """x under `count` masks, salted `salt` and on. `x` may be columns of a wider matrix."""
    if not x.is_cuda:
        return torch.stack([(x.float() * dropout.build_mask(x, rng_stream + i)).to(x.dtype) for i in range(count)])
    made = torch.empty(count, *x.shape, dtype=x.dtype, device=x.device)
    grid = (len(x), triton.cdiv(x.shape[1], _BLOCK))
    _apply_dropout_kernel[grid](
        x, made, dropout.key, rng_stream, dropout.threshold, dropout.scale, len(x), x.shape[1], x.stride(0),
        COUNT=count, BLOCK=_BLOCK, num_warps=2,
    )  # fmt: skip
    return made


def add_masked_grads(
    out: Float[Tensor, "T C"], grads: Float[Tensor, "count T C"], dropout: Dropout, rng_stream: int
) -> None:
    """out += Σᵢ maskᵢ · gradsᵢ, with the masks of `dropped`: the gradient of x. `out` may be columns."""
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
    """key, salt, threshold and scale for a kernel, which does not look at them without a mask."""
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
    def derive_stream_key(key, salt):
        return fmix32((tl.load(key) + salt.to(tl.int64) * 0x9E3779B9).to(tl.uint32))

    @triton.jit(do_not_specialize=["salt", "T", "threshold"])
    @no_type_check
    def _apply_dropout_kernel(
        x, made, key, salt, threshold, scale, T, C, stride, COUNT: tl.constexpr, BLOCK: tl.constexpr
    ):  # one program a row and block of columns, all masks
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        there = at < C
        value = tl.load(x + row * stride + at, mask=there, other=0.0).to(tl.float32) * scale
        place = (row * C + at).to(tl.uint32)
        for i in tl.static_range(COUNT):
            bits = fmix32(place ^ derive_stream_key(key, salt + i))
            kept = tl.where(bits >= threshold.to(tl.uint32), value, 0.0)
            tl.store(made + (i * T + row) * C + at, kept.to(made.dtype.element_ty), mask=there)

    @triton.jit(do_not_specialize=["salt", "T", "threshold"])
    @no_type_check
    def _add_masked_grads_kernel(
        out, grads, key, salt, threshold, scale, T, C, stride, COUNT: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        there = at < C
        total = tl.load(out + row * stride + at, mask=there, other=0.0).to(tl.float32)
        place = (row * C + at).to(tl.uint32)
        for i in tl.static_range(COUNT):
            grad = tl.load(grads + (i * T + row) * C + at, mask=there, other=0.0).to(tl.float32)
            bits = fmix32(place ^ derive_stream_key(key, salt + i))
            total += tl.where(bits >= threshold.to(tl.uint32), grad * scale, 0.0)
        tl.store(out + row * stride + at, total.to(out.dtype.element_ty), mask=there)
