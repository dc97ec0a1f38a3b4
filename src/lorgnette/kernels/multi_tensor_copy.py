"""Many matrices out of one flat fp32 vector, each to its own place, scaled and rounded: one launch for all of them.

After every optimizer step each of some hundred factors goes to columns of some wider matrix. One copy at a time, that
is an eighth of a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class CopyOp:
    """source: a contiguous view into the flat vector; place: where scale · source goes, perhaps columns of a wider
    matrix."""

    source: Float32[Tensor, "m n"]
    destination: Float[Tensor, "m n"]
    scale: float


class MultiTensorCopy:
    """Moves that are made again and again. The tensors must stay where they are."""

    def __init__(self, flat: Float32[Tensor, " N"], ops: Sequence[CopyOp]) -> None:
        self._flat, self._ops = flat, ops
        if flat.is_cuda and ops:
            table = [
                (
                    m.source.storage_offset(),
                    m.destination.data_ptr(),
                    m.destination.numel(),
                    m.destination.shape[1],
                    m.destination.stride(0),
                )
                for m in ops
            ]
            self._table = torch.tensor(table, dtype=torch.int64, device=flat.device)
            self._scales = torch.tensor([m.scale for m in ops], dtype=torch.float32, device=flat.device)
            self._num_blocks = max(triton.cdiv(m.destination.numel(), _BLOCK) for m in ops)

    def __call__(self) -> None:
        if not self._ops:
            return
        if not self._flat.is_cuda:
            for move in self._ops:
                move.destination.copy_(move.source * move.scale)
            return
        half = self._ops[0].destination.dtype == torch.bfloat16
        _multi_tensor_copy_kernel[(len(self._ops), self._num_blocks)](
            self._flat, self._table, self._scales, HALF=half, BLOCK=_BLOCK
        )


if triton is not None:

    @triton.jit
    @no_type_check
    def _multi_tensor_copy_kernel(flat, table, scales, HALF: tl.constexpr, BLOCK: tl.constexpr):
        number = tl.program_id(0)
        source, address = tl.load(table + 5 * number), tl.load(table + 5 * number + 1)
        count, width = tl.load(table + 5 * number + 2), tl.load(table + 5 * number + 3).to(tl.int32)
        stride = tl.load(table + 5 * number + 4)
        begin = tl.program_id(1) * BLOCK
        if begin < count:
            at = begin + tl.arange(0, BLOCK)
            there = at < count
            value = tl.load(flat + source + at, mask=there, other=0.0) * tl.load(scales + number)
            place = (at // width).to(tl.int64) * stride + at % width
            if HALF:
                tl.store(address.to(tl.pointer_type(tl.bfloat16)) + place, value.to(tl.bfloat16), mask=there)
            else:
                tl.store(address.to(tl.pointer_type(tl.float32)) + place, value, mask=there)
