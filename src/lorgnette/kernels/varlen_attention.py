"""Attention inside the spans of a packed row, forward only: every span attends to itself alone.

    S = QKᵀ/√D   P = exp(S − max)   O = PV / ΣP        (FlashAttention-2: Dao 2023)

torch's kernels have tiles of 128 queries, and heads of 64, 96 or 128 channels. The spans of a vision tower have 64 to
some hundred patches, its heads 64, 72 or 80 channels. Tiles of 64, and channels as 64 + 16, leave less of them empty.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lorgnette.kernels.triton_import import tl, triton

_LOG2E = 1.4426950408889634
_BLOCK_M = _BLOCK_N = 64
"""Queries of a tile, keys of a block."""
_MIN_CHANNELS = 16
"""Of a product on tensor cores."""


def split_into_tiles(lengths: Sequence[int]) -> Int32[np.ndarray, "n 3"]:
    """(first query, begin and end of its span) of every tile of queries."""
    ends = list(accumulate(lengths))
    spans = [(end - length, end) for length, end in zip(lengths, ends, strict=True)]
    tiles = [(first, start, end) for start, end in spans for first in range(start, end, _BLOCK_M)]
    return np.array(tiles, np.int32).reshape(-1, 3)


def varlen_attention(
    qkv: Float[Tensor, "N 3 H D"], lengths: Sequence[int], tiles: Int32[Tensor, "n 3"]
) -> Float[Tensor, "N H D"]:
    """softmax(q·kᵀ/√D)·v inside every span. lengths: of the spans, N in all; tiles: those of `split_into_tiles`."""
    N, _, H, D = qkv.shape
    is_half = qkv.dtype in (torch.bfloat16, torch.float16)
    if not (qkv.is_cuda and is_half and D >= _MIN_CHANNELS):
        return _attend_span_by_span(qkv, lengths)
    out = torch.empty(N, H, D, dtype=qkv.dtype, device=qkv.device)
    first_channels = 1 << (D.bit_length() - 1)
    other_channels = triton.next_power_of_2(D - first_channels) if first_channels < D else 0
    _varlen_attention_kernel[(len(tiles), H)](
        qkv, tiles, out, D**-0.5 * _LOG2E, ROW=qkv.stride(0), H=H, D=D, D1=first_channels,
        D2=max(other_channels, _MIN_CHANNELS) if other_channels else 0,
        BLOCK_M=_BLOCK_M, BLOCK_N=_BLOCK_N, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def _attend_span_by_span(qkv: Float[Tensor, "N 3 H D"], lengths: Sequence[int]) -> Float[Tensor, "N H D"]:
    """The definition, with one call per run of spans of equal length."""
    parts, start = [], 0
    for length, run in groupby(lengths):
        end = start + length * len(list(run))
        q, k, v = qkv[start:end].view(-1, length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
        parts.append(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(parts)


if triton is not None:

    @triton.jit
    @no_type_check
    def _varlen_attention_kernel(
        qkv, tiles, out, scale, ROW: tl.constexpr, H: tl.constexpr, D: tl.constexpr, D1: tl.constexpr,
        D2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    ):  # fmt: skip
        """O of one tile and head. D1, D2: a head's channels in two parts; scale: log₂e/√D, so that exp2 can be used."""
        tile, head = tl.program_id(0), tl.program_id(1)
        first, start, end = tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
        offs_m = first + tl.arange(0, BLOCK_M)
        mask_m = (offs_m < end)[:, None]
        offs_1 = tl.arange(0, D1)[None, :]
        q = qkv + offs_m.to(tl.int64)[:, None] * ROW + head * D
        q1 = tl.load(q + offs_1, mask=mask_m, other=0.0)
        acc1 = tl.zeros((BLOCK_M, D1), tl.float32)
        if D2 > 0:
            offs_2 = D1 + tl.arange(0, D2)[None, :]
            mask_2 = offs_2 < D
            q2 = tl.load(q + offs_2, mask=mask_m & mask_2, other=0.0)
            acc2 = tl.zeros((BLOCK_M, D2), tl.float32)
        # Running maximum, sum and output of the online softmax.
        m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        l_i = tl.zeros((BLOCK_M,), tl.float32)
        for begin in range(start, end, BLOCK_N):
            offs_n = begin + tl.arange(0, BLOCK_N)
            mask_n = (offs_n < end)[:, None]
            k = qkv + offs_n.to(tl.int64)[:, None] * ROW + (H + head) * D
            v = k + H * D
            qk = tl.dot(q1, tl.trans(tl.load(k + offs_1, mask=mask_n, other=0.0)))
            if D2 > 0:
                qk = tl.dot(q2, tl.trans(tl.load(k + offs_2, mask=mask_n & mask_2, other=0.0)), qk)
            qk = tl.where((offs_n < end)[None, :], qk * scale, float("-inf"))
            m_new = tl.maximum(m_i, tl.max(qk, 1))
            p = tl.exp2(qk - m_new[:, None])
            alpha = tl.exp2(m_i - m_new)
            l_i = l_i * alpha + tl.sum(p, 1)
            p = p.to(qkv.dtype.element_ty)
            acc1 = tl.dot(p, tl.load(v + offs_1, mask=mask_n, other=0.0), acc1 * alpha[:, None])
            if D2 > 0:
                acc2 = tl.dot(p, tl.load(v + offs_2, mask=mask_n & mask_2, other=0.0), acc2 * alpha[:, None])
            m_i = m_new
        o = out + offs_m.to(tl.int64)[:, None] * (H * D) + head * D
        tl.store(o + offs_1, (acc1 / l_i[:, None]).to(out.dtype.element_ty), mask=mask_m)
        if D2 > 0:
            tl.store(o + offs_2, (acc2 / l_i[:, None]).to(out.dtype.element_ty), mask=mask_m & mask_2)
