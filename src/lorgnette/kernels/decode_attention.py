"""Attention of one new token a row over the row's cached keys: what a step of decoding does.

    cache  [B, L, 2K, D]   a row's keys' heads, then its values'        lengths [B]: how many of L places are filled
    query  [B, H, D]       H/K query heads look at one key head together

The cached keys are read once for all query heads that share them. Long rows are cut into parts that are attended to at
the same time and put together by their highest scores (Dao et al. 2023, "Flash-Decoding"). Sums are fp32; the result is
rounded once.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Int32
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch without CUDA comes without it
    triton = None

_SPLIT_SIZE = 256
_BLOCK_N = 64
_MIN_DOT_SIZE = 16
"""Sides of a product that tensor cores take are no smaller."""


def decode_attention(
    q: Float[Tensor, "B HD"], cache: Float[Tensor, "B L KK D"], lengths: Int32[Tensor, " B"], out: Float[Tensor, "B HD"]
) -> None:
    """out = softmax(q·kᵀ/√D)·v over each row's first `lengths` places (one at the least). `q` and `out` may be columns
    of wider matrices."""
    if not cache.is_cuda:
        out.copy_(decode_attention_reference(q, cache, lengths))
        return
    B, L, K, D = len(cache), cache.shape[1], cache.shape[2] // 2, cache.shape[3]
    group, parts = q.shape[1] // (K * D), triton.cdiv(L, _SPLIT_SIZE)
    sizes = {
        "K": K, "G": group, "G_BLOCK": max(_MIN_DOT_SIZE, triton.next_power_of_2(group)),
        "D": D, "D_BLOCK": max(_MIN_DOT_SIZE, triton.next_power_of_2(D)), "PARTS": parts,
    }  # fmt: skip
    summed, total, highest = out, out, out  # not read where one part is the whole
    if parts > 1:
        summed = torch.empty(B, K, parts, sizes["G_BLOCK"], sizes["D_BLOCK"], dtype=torch.float32, device=q.device)
        total, highest = torch.empty(2, *summed.shape[:-1], dtype=torch.float32, device=q.device)
    _split_kv_kernel[(B, K, parts)](
        q, cache, lengths, out, summed, total, highest, D**-0.5, L, q.stride(0), out.stride(0),
        PART=min(_SPLIT_SIZE, triton.cdiv(L, _BLOCK_N) * _BLOCK_N), BLOCK=_BLOCK_N, **sizes, num_warps=4, num_stages=2,
    )  # fmt: skip
    if parts > 1:
        _combine_splits_kernel[(B, K)](summed, total, highest, out, out.stride(0), **sizes, num_warps=4)


def decode_attention_reference(
    q: Float[Tensor, "B HD"], cache: Float[Tensor, "B L KK D"], lengths: Int32[Tensor, " B"]
) -> Float[Tensor, "B HD"]:
    B, L, K, D = len(cache), cache.shape[1], cache.shape[2] // 2, cache.shape[3]
    keys, values = cache.float().split(K, 2)
    scores = torch.einsum("bkgd,blkd->bkgl", q.reshape(B, K, -1, D).float(), keys) * D**-0.5
    seen = torch.arange(L, device=q.device) < lengths[:, None]
    likely = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1)
    return torch.einsum("bkgl,blkd->bkgd", likely, values).to(q.dtype).flatten(1)


if triton is not None:

    @triton.jit
    @no_type_check
    def _split_kv_kernel(
        q, cache, lengths, out, summed, total, highest, scale, L, q_stride, out_stride,
        K: tl.constexpr, G: tl.constexpr, G_BLOCK: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
        PARTS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip  # one program a row, key head and part
        row, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
        length = tl.load(lengths + row)
        g, at = tl.arange(0, G_BLOCK), tl.arange(0, D_BLOCK)
        wide = (at < D)[None, :]
        there = (g < G)[:, None] & wide
        place = (head * G + g)[:, None] * D + at[None, :]
        query = tl.load(q + row * q_stride + place, mask=there, other=0.0)
        top = tl.full((G_BLOCK,), float("-inf"), tl.float32)
        weight = tl.zeros((G_BLOCK,), tl.float32)
        value = tl.zeros((G_BLOCK, D_BLOCK), tl.float32)
        for begin in range(0, PART, BLOCK):
            key = part * PART + begin + tl.arange(0, BLOCK)
            seen = key < length
            kept = cache + ((row * L + key) * (2 * K) + head)[:, None] * D + at[None, :]
            k = tl.load(kept, mask=seen[:, None] & wide, other=0.0)
            v = tl.load(kept + K * D, mask=seen[:, None] & wide, other=0.0)
            score = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
            score = tl.where(seen[None, :], score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
            likely = tl.exp(score - safe[:, None])
            shrunk = tl.exp(top - safe)
            weight = weight * shrunk + tl.sum(likely, 1)
            value = value * shrunk[:, None] + tl.dot(likely.to(v.dtype), v, input_precision="ieee")
            top = higher
        if PARTS == 1:
            made = (value / weight[:, None]).to(out.dtype.element_ty)
            tl.store(out + row * out_stride + place, made, mask=there)
        else:
            kept = ((row * K + head) * PARTS + part) * G_BLOCK + g
            tl.store(total + kept, weight)
            tl.store(highest + kept, top)
            tl.store(summed + kept[:, None] * D_BLOCK + at[None, :], value)

    @triton.jit
    @no_type_check
    def _combine_splits_kernel(
        summed, total, highest, out, out_stride,
        K: tl.constexpr, G: tl.constexpr, G_BLOCK: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
        PARTS: tl.constexpr,
    ):  # fmt: skip  # one program a row and key head; the first part of a row is never empty
        row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
        g, at = tl.arange(0, G_BLOCK), tl.arange(0, D_BLOCK)
        top = tl.full((G_BLOCK,), float("-inf"), tl.float32)
        weight = tl.zeros((G_BLOCK,), tl.float32)
        value = tl.zeros((G_BLOCK, D_BLOCK), tl.float32)
        for part in range(PARTS):
            kept = ((row * K + head) * PARTS + part) * G_BLOCK + g
            high = tl.load(highest + kept)
            higher = tl.maximum(top, high)
            shrunk, share = tl.exp(top - higher), tl.exp(high - higher)
            weight = weight * shrunk + tl.load(total + kept) * share
            added = tl.load(summed + kept[:, None] * D_BLOCK + at[None, :])
            value = value * shrunk[:, None] + added * share[:, None]
            top = higher
        place = (head * G + g)[:, None] * D + at[None, :]
        made = (value / weight[:, None]).to(out.dtype.element_ty)
        tl.store(out + row * out_stride + place, made, mask=(g < G)[:, None] & (at < D)[None, :])
