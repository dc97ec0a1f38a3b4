"""Attention of one new token per row over the row's cached keys: the attention of a decoding step.

    cache  [B, L, 2K, D]   key heads, then value heads, of each slot        lengths [B]: filled slots of L
    q      [B, H·D]        H/K = G query heads share a key head

Cached keys are read once for all query heads that share them. Long rows are split into parts that run in parallel and
are combined by their running maxima (Flash-Decoding: Dao et al. 2023). Sums are fp32; the result is rounded once.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from lorgnette.kernels import DECODE_SPLIT_SIZE
from lorgnette.kernels.tiles import select_tiles
from lorgnette.kernels.triton_import import tl, triton

_MIN_DOT_SIZE = 16
"""Smallest side of a matrix product on tensor cores."""


def decode_attention(
    q: Float[Tensor, "B HD"], cache: Float[Tensor, "B L KK D"], lengths: Int32[Tensor, " B"], out: Float[Tensor, "B HD"]
) -> None:
    """out = softmax(q·kᵀ/√D)·v over the first `lengths` slots of each row (at least one). `q` and `out` may be columns
    of wider matrices."""
    B, L, K, D = len(cache), cache.shape[1], cache.shape[2] // 2, cache.shape[3]
    if not cache.is_cuda:
        keys, values = cache.float().split(K, 2)
        scores = torch.einsum("bkgd,blkd->bkgl", q.reshape(B, K, -1, D).float(), keys) * D**-0.5
        filled = torch.arange(L) < lengths[:, None]
        p = scores.masked_fill(~filled[:, None, None], float("-inf")).softmax(-1)
        out.copy_(torch.einsum("bkgl,blkd->bkgd", p, values).to(q.dtype).flatten(1))
        return
    group_size, splits = q.shape[1] // (K * D), triton.cdiv(L, DECODE_SPLIT_SIZE)
    sizes = {
        "K": K, "G": group_size, "BLOCK_G": max(_MIN_DOT_SIZE, triton.next_power_of_2(group_size)),
        "D": D, "BLOCK_D": max(_MIN_DOT_SIZE, triton.next_power_of_2(D)), "SPLITS": splits,
    }  # fmt: skip
    part_acc, part_l, part_m = out, out, out  # unused with one split
    if splits > 1:
        part_acc = torch.empty(B, K, splits, sizes["BLOCK_G"], sizes["BLOCK_D"], dtype=torch.float32, device=q.device)
        part_l, part_m = torch.empty(2, *part_acc.shape[:-1], dtype=torch.float32, device=q.device)
    block_n = select_tiles(cache.device).decode_block_n
    _split_kv_kernel[(B, K, splits)](
        q, cache, lengths, out, part_acc, part_l, part_m, D**-0.5, L, q.stride(0), out.stride(0),
        SPLIT_SIZE=min(DECODE_SPLIT_SIZE, triton.cdiv(L, block_n) * block_n), BLOCK_N=block_n, **sizes, num_warps=4,
        num_stages=2,
    )  # fmt: skip
    if splits > 1:
        _combine_splits_kernel[(B, K)](part_acc, part_l, part_m, out, out.stride(0), **sizes, num_warps=4)


if triton is not None:

    @triton.jit
    @no_type_check
    def _split_kv_kernel(
        q, cache, lengths, out, part_acc, part_l, part_m, scale, L, q_stride, out_stride,
        K: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
        SPLITS: tl.constexpr, SPLIT_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    ):  # fmt: skip
        """One row, key head and split."""
        row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
        length = tl.load(lengths + row)
        offs_g, offs_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
        mask_d = (offs_d < D)[None, :]
        mask_gd = (offs_g < G)[:, None] & mask_d
        offs_gd = (head * G + offs_g)[:, None] * D + offs_d[None, :]
        q_g = tl.load(q + row * q_stride + offs_gd, mask=mask_gd, other=0.0)
        # Online softmax over the split's keys, for the G heads together.
        m_i = tl.full((BLOCK_G,), float("-inf"), tl.float32)
        l_i = tl.zeros((BLOCK_G,), tl.float32)
        acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
        for start in range(0, SPLIT_SIZE, BLOCK_N):
            offs_n = split * SPLIT_SIZE + start + tl.arange(0, BLOCK_N)
            mask_n = offs_n < length
            ptrs = cache + ((row * L + offs_n) * (2 * K) + head)[:, None] * D + offs_d[None, :]
            k = tl.load(ptrs, mask=mask_n[:, None] & mask_d, other=0.0)
            v = tl.load(ptrs + K * D, mask=mask_n[:, None] & mask_d, other=0.0)
            qk = tl.dot(q_g, tl.trans(k), input_precision="ieee") * scale
            qk = tl.where(mask_n[None, :], qk, float("-inf"))
            m_new = tl.maximum(m_i, tl.max(qk, 1))
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # no filled slot yet
            p = tl.exp(qk - m_safe[:, None])
            alpha = tl.exp(m_i - m_safe)
            l_i = l_i * alpha + tl.sum(p, 1)
            acc = acc * alpha[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            m_i = m_new
        # A single split is the result; otherwise maximum, sum and output are left for the combining kernel.
        if SPLITS == 1:
            o = (acc / l_i[:, None]).to(out.dtype.element_ty)
            tl.store(out + row * out_stride + offs_gd, o, mask=mask_gd)
        else:
            ptrs = ((row * K + head) * SPLITS + split) * BLOCK_G + offs_g
            tl.store(part_l + ptrs, l_i)
            tl.store(part_m + ptrs, m_i)
            tl.store(part_acc + ptrs[:, None] * BLOCK_D + offs_d[None, :], acc)

    @triton.jit
    @no_type_check
    def _combine_splits_kernel(
        part_acc, part_l, part_m, out, out_stride,
        K: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
        SPLITS: tl.constexpr,
    ):  # fmt: skip
        """One row and key head. The first split of a row is never empty."""
        row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
        offs_g, offs_d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
        m_i = tl.full((BLOCK_G,), float("-inf"), tl.float32)
        l_i = tl.zeros((BLOCK_G,), tl.float32)
        acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
        # Online softmax again, a split at a time, in order.
        for split in range(SPLITS):
            ptrs = ((row * K + head) * SPLITS + split) * BLOCK_G + offs_g
            m_split = tl.load(part_m + ptrs)
            m_new = tl.maximum(m_i, m_split)
            alpha, beta = tl.exp(m_i - m_new), tl.exp(m_split - m_new)
            l_i = l_i * alpha + tl.load(part_l + ptrs) * beta
            acc_split = tl.load(part_acc + ptrs[:, None] * BLOCK_D + offs_d[None, :])
            acc = acc * alpha[:, None] + acc_split * beta[:, None]
            m_i = m_new
        offs_gd = (head * G + offs_g)[:, None] * D + offs_d[None, :]
        o = (acc / l_i[:, None]).to(out.dtype.element_ty)
        tl.store(out + row * out_stride + offs_gd, o, mask=(offs_g < G)[:, None] & (offs_d < D)[None, :])
