"""Many copies out of one flat fp32 vector, scaled and cast, in a single launch.

After every optimizer step each of some hundred LoRA factors is copied into columns of a wider matrix. Launched one by
one, these copies take an eighth of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton

_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class CopyOp:
    """destination = scale · source.

    source: a contiguous view into the flat vector; destination: may be columns of a wider matrix.
    """

    source: Float32[Tensor, "m n"]
    destination: Float[Tensor, "m n"]
    scale: float


class MultiTensorCopy:
    """A list of copies to run repeatedly. The tensors must keep their addresses; all destinations have one dtype."""

    def __init__(self, flat: Float32[Tensor, " N"], ops: Sequence[CopyOp]) -> None:
        self._flat, self._ops = flat, ops
        if flat.is_cuda and ops:
            # The kernel reads addresses and sizes from this table; 5 columns per copy.
            pairs = [(op.source, op.destination) for op in ops]
            table = [(a.storage_offset(), b.data_ptr(), b.numel(), b.shape[1], b.stride(0)) for a, b in pairs]
            self._table = torch.tensor(table, dtype=torch.int64, device=flat.device)
            self._scales = torch.tensor([op.scale for op in ops], dtype=torch.float32, device=flat.device)
            self._num_blocks = max(triton.cdiv(op.destination.numel(), _BLOCK) for op in ops)

    def __call__(self) -> None:
        if not self._flat.is_cuda:
            for op in self._ops:
                op.destination.copy_(op.source * op.scale)
        elif self._ops:
            grid, like = (len(self._ops), self._num_blocks), self._ops[0].destination
            _multi_tensor_copy_kernel[grid](self._flat, self._table, self._scales, like, BLOCK=_BLOCK)


if triton is not None:

    @triton.jit
    @no_type_check
    def _multi_tensor_copy_kernel(flat, table, scales, like, BLOCK: tl.constexpr):
        """One block of one copy. like: any destination; its address is not used, but its dtype is that of all."""
        op = tl.program_id(0)
        source, address = tl.load(table + 5 * op), tl.load(table + 5 * op + 1)
        count, width = tl.load(table + 5 * op + 2), tl.load(table + 5 * op + 3).to(tl.int32)
        stride = tl.load(table + 5 * op + 4)
        start = tl.program_id(1) * BLOCK
        # The grid fits the largest copy; programs behind the end of a smaller one do nothing.
        if start < count:
            offs = start + tl.arange(0, BLOCK)
            mask = offs < count
            values = tl.load(flat + source + offs, mask=mask, other=0.0) * tl.load(scales + op)
            offs_dst = (offs // width).to(tl.int64) * stride + offs % width
            tl.store(address.to(like.dtype) + offs_dst, values.to(like.dtype.element_ty), mask=mask)
