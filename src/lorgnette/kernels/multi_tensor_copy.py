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
class Move:
    """source: a contiguous view into the flat vector; place: where scale · source goes, perhaps columns of a wider
    matrix."""

    source: Float32[Tensor, "m n"]
    place: Float[Tensor, "m n"]
    scale: float


class Spread:
    """Moves that are made again and again. The tensors must stay where they are."""

    def __init__(self, flat: Float32[Tensor, " N"], moves: Sequence[Move]) -> None:
        self._flat, self._moves = flat, moves
        if flat.is_cuda and moves:
            table = [
                (m.source.storage_offset(), m.place.data_ptr(), m.place.numel(), m.place.shape[1], m.place.stride(0))
                for m in moves
            ]
            self._table = torch.tensor(table, dtype=torch.int64, device=flat.device)
            self._scales = torch.tensor([m.scale for m in moves], dtype=torch.float32, device=flat.device)
            self._blocks = max(triton.cdiv(m.place.numel(), _BLOCK) for m in moves)

    def __call__(self) -> None:
        if not self._moves:
            return
        if not self._flat.is_cuda:
            for move in self._moves:
                move.place.copy_(move.source * move.scale)
            return
        half = self._moves[0].place.dtype == torch.bfloat16
        _spread[(len(self._moves), self._blocks)](self._flat, self._table, self._scales, HALF=half, BLOCK=_BLOCK)


if triton is not None:

    @triton.jit
    @no_type_check
    def _spread(flat, table, scales, HALF: tl.constexpr, BLOCK: tl.constexpr):
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
