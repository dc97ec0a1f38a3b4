"""Dropout on the adapter's inputs. Masks are computed again where they are needed, never stored.

PEFT drops the input of each projection separately, so query, key and value see three masks of one matrix. The mask of
an element is a hash (fmix32, the finalizer of MurmurHash3) of its token's key (processing/dropout_keys.py), the
projection's number and the column. So the backward pass computes the same masks, CPU and GPU agree, and the masks of a
token are the same whatever tokens are beside it.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton

_BLOCK = 512
_UINT32_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of the tokens of a matrix. keys: of each token; rate: the share of elements that is dropped.

    `rng_stream` numbers the masks of a token: every projection of the model has its own.
    """

    keys: Int32[Tensor, " T"]
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
        row_keys = _fmix32((self.keys.long() + rng_stream * 0x9E3779B9) & _UINT32_MASK)
        columns = torch.arange(x.shape[1], device=x.device) * 0x9E3779B1
        bits = _fmix32((row_keys[:, None] + columns) & _UINT32_MASK)
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
        x, out, dropout.keys, rng_stream, dropout.threshold, dropout.scale, len(x), x.shape[1], x.stride(0),
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
        out, grads, dropout.keys, rng_stream, dropout.threshold, dropout.scale, len(out), out.shape[1], out.stride(0),
        COUNT=len(grads), BLOCK=_BLOCK, num_warps=2,
    )  # fmt: skip


def select_tokens(dropout: Dropout | None, indices: Int32[Tensor, " M"] | None) -> Dropout | None:
    """The dropout of some of the tokens; None: of all."""
    if dropout is None or indices is None:
        return dropout
    return Dropout(dropout.keys.index_select(0, indices), dropout.rate)


def build_kernel_args(dropout: Dropout | None, like: Tensor, rng_stream: int) -> tuple[Tensor, int, int, float]:
    """(keys, rng_stream, threshold, scale) for a kernel; placeholders without dropout."""
    return (like, 0, 0, 1.0) if dropout is None else (dropout.keys, rng_stream, dropout.threshold, dropout.scale)


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
    def hash_row(key, rng_stream):
        """The hash of a token for one projection."""
        return fmix32((key + rng_stream.to(tl.int64) * 0x9E3779B9).to(tl.uint32))

    @triton.jit
    @no_type_check
    def is_element_kept(row_hash, columns, threshold):
        """Whether each of these columns of a row is kept."""
        return fmix32(row_hash + columns.to(tl.uint32) * 0x9E3779B1) >= threshold.to(tl.uint32)

    @triton.jit
    @no_type_check
    def is_kept(key, rng_stream, columns, threshold):
        """The same; key points at the key of the row's token."""
        return is_element_kept(hash_row(tl.load(key), rng_stream), columns, threshold)

    @triton.jit(do_not_specialize=["rng_stream", "T", "threshold"])
    @no_type_check
    def _apply_dropout_kernel(
        x, out, keys, rng_stream, threshold, scale, T, C, stride, COUNT: tl.constexpr, BLOCK: tl.constexpr
    ):
        """One row and block of columns."""
        row = tl.program_id(0).to(tl.int64)
        offs_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask_c = offs_c < C
        scaled = tl.load(x + row * stride + offs_c, mask=mask_c, other=0.0).to(tl.float32) * scale
        # All masks in one program: x is read once.
        for i in tl.static_range(COUNT):
            masked = tl.where(is_kept(keys + row, rng_stream + i, offs_c, threshold), scaled, 0.0)
            tl.store(out + (i * T + row) * C + offs_c, masked.to(out.dtype.element_ty), mask=mask_c)

    @triton.jit(do_not_specialize=["rng_stream", "T", "threshold"])
    @no_type_check
    def _add_masked_grads_kernel(
        out, grads, keys, rng_stream, threshold, scale, T, C, stride, COUNT: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        offs_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask_c = offs_c < C
        acc = tl.load(out + row * stride + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        # The masks of the forward pass, computed again from the same keys.
        for i in tl.static_range(COUNT):
            grad = tl.load(grads + (i * T + row) * C + offs_c, mask=mask_c, other=0.0).to(tl.float32)
            acc += tl.where(is_kept(keys + row, rng_stream + i, offs_c, threshold), grad * scale, 0.0)
        tl.store(out + row * stride + offs_c, acc.to(out.dtype.element_ty), mask=mask_c)
