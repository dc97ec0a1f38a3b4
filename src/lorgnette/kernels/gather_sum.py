"""Sums over rows that were gathered more than once: the gradient of a gather, in a fixed order.

`index_add_` on a GPU adds in whatever order its threads come, so that two equal runs differ; here every row adds up
its copies one after the other, in fp32.
"""

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


@dataclass(frozen=True, slots=True)
class GatherSegments:
    """Where each of T rows went: row t went to places[starts[t] : starts[t + 1]] (T + 1 starts). What stands behind the
    last is nobody's."""

    indices: Int32[Tensor, " N"]
    offsets: Int32[Tensor, " B"]


def build_segments(
    rows: Int32[np.ndarray, " N"], count: int
) -> tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " B"]]:
    """(places, starts) of a gather of `rows` out of `count`, on the host."""
    places = np.argsort(rows, kind="stable").astype(np.int32)
    starts = np.searchsorted(rows[places], np.arange(count + 1)).astype(np.int32)
    return places, starts


def gather_sum(
    gathered: Float[Tensor, "N C"], segments: GatherSegments, out: Float[Tensor, "T C"]
) -> Float[Tensor, "T C"]:
    """out[t] = the sum of t's copies; 0 for a row that was not gathered. `out` may be columns of a wider matrix."""
    if not gathered.is_cuda:
        return out.copy_(gather_sum_reference(gathered, segments))
    width = gathered.shape[1]
    block = min(1024, triton.next_power_of_2(width))
    _gather_sum_kernel[(len(out), triton.cdiv(width, block))](
        gathered, segments.indices, segments.offsets, out, width, gathered.stride(0), out.stride(0), BLOCK=block
    )
    return out


def gather_sum_reference(gathered: Float[Tensor, "N C"], segments: GatherSegments) -> Float[Tensor, "T C"]:
    counts = segments.offsets.diff()
    row = torch.repeat_interleave(torch.arange(len(counts), device=gathered.device), counts)
    total = torch.zeros(len(counts), gathered.shape[1], device=gathered.device)
    places = segments.indices[: len(row)].long()
    return total.index_add_(0, row, gathered[places].float()).to(gathered.dtype)


if triton is not None:

    @triton.jit
    @no_type_check
    def _gather_sum_kernel(copied, places, starts, out, C, copied_stride, out_stride, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        there = at < C
        total = tl.zeros((BLOCK,), tl.float32)
        for i in range(tl.load(starts + row), tl.load(starts + row + 1)):
            place = tl.load(places + i).to(tl.int64)
            total += tl.load(copied + place * copied_stride + at, mask=there, other=0.0).to(tl.float32)
        tl.store(out + row * out_stride + at, total.to(out.dtype.element_ty), mask=there)
