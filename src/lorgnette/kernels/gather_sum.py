"""Sums over rows that were gathered several times: the gradient of a gather, in a fixed order.

`index_add_` on a GPU adds in the order in which its threads arrive, so two equal runs differ. Here every row adds its
copies one after another, in fp32.
"""

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton


@dataclass(frozen=True, slots=True)
class GatherSegments:
    """The inverse of a gather from T rows: row t was copied to indices[offsets[t] : offsets[t + 1]].

    Indices behind the last offset are padding.
    """

    indices: Int32[Tensor, " N"]
    offsets: Int32[Tensor, " B"]


def build_segments(
    rows: Int32[np.ndarray, " N"], count: int
) -> tuple[Int32[np.ndarray, " N"], Int32[np.ndarray, " B"]]:
    """(indices, offsets) of the gather of `rows` from `count` rows, on the host."""
    indices = np.argsort(rows, kind="stable").astype(np.int32)
    offsets = np.searchsorted(rows[indices], np.arange(count + 1)).astype(np.int32)
    return indices, offsets


def gather_sum(
    gathered: Float[Tensor, "N C"], segments: GatherSegments, out: Float[Tensor, "T C"]
) -> Float[Tensor, "T C"]:
    """out[t] = the sum of t's copies; 0 for a row that was not gathered. `out` may be columns of a wider matrix."""
    if not gathered.is_cuda:
        counts = segments.offsets.diff()
        row = torch.repeat_interleave(torch.arange(len(counts)), counts)
        copies = gathered[segments.indices[: len(row)].long()].float()
        return out.copy_(torch.zeros(len(counts), gathered.shape[1]).index_add_(0, row, copies).to(gathered.dtype))
    width = gathered.shape[1]
    block = min(1024, triton.next_power_of_2(width))
    _gather_sum_kernel[(len(out), triton.cdiv(width, block))](
        gathered, segments.indices, segments.offsets, out, width, gathered.stride(0), out.stride(0), BLOCK=block
    )
    return out


if triton is not None:

    @triton.jit
    @no_type_check
    def _gather_sum_kernel(gathered, indices, offsets, out, C, gathered_stride, out_stride, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        offs_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask_c = offs_c < C
        acc = tl.zeros((BLOCK,), tl.float32)
        # One program adds all copies of a row, in order; no atomics.
        for i in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
            index = tl.load(indices + i).to(tl.int64)
            acc += tl.load(gathered + index * gathered_stride + offs_c, mask=mask_c, other=0.0).to(tl.float32)
        tl.store(out + row * out_stride + offs_c, acc.to(out.dtype.element_ty), mask=mask_c)
