"""Attention in a packed tree of rows, forward and backward: a query in row t sees the keys k ≤ t < ends[k].

    qkv  [T, (H+2K)·D]  queries', keys' and values' heads side by side; H/K = G query heads look at one key head

    S = QKᵀ/√D   P = exp(S − lse)   O = PV      dS = P ∘ (dO·Vᵀ − Σ dO∘O)   dQ = dS·K/√D   dK = dSᵀQ/√D   dV = PᵀdO
    (FlashAttention-2: Dao 2023; what a key is seen by as one run of rows: FlashMask, Wang et al. 2024)

A query's G heads are rows of one product, so that a caption of a dozen tokens fills a tile, and every key is read once
for all of them; nothing is copied where many share a beginning. P and dS are rounded to the rows' dtype before they are
multiplied, sums are fp32. Every sum is added up in an order of its own: two equal passes are equal in every bit.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.kernels.attention_plan import BLOCK_M, BLOCK_N, AttentionPlan, count_tile_queries
from lorgnette.models.qwen2_vl.config import MAX_GROUP_SIZE

try:
    import triton
    import triton.language as tl
except ImportError:  # torch without CUDA comes without it
    triton = None

Heads = tuple[int, int]
"""(H, K)."""
_LOG2E = 1.4426950408889634
_BWD_BLOCK_M = MAX_GROUP_SIZE
"""Pairs at once where keys' gradients are added up: of one query at the least."""
_REDUCE_KEYS = 16
_REFERENCE_QUERIES = 256
"""Of the plain definition."""


def attention_forward(
    qkv: Float[Tensor, "T _"], plan: AttentionPlan, num_heads: Heads, out: Float[Tensor, "M _"]
) -> Float32[Tensor, "M H"] | None:
    """out = softmax(q·kᵀ/√D)·v of the keys that each query sees; 0 where it sees none. `out` may be columns of a wider
    matrix. Returns what the backward pass needs: log₂ Σ 2^(S·log₂e)."""
    if not _use_kernels(qkv):
        out.copy_(attention_reference(qkv, plan, num_heads))
        return None
    sizes = _build_constexprs(qkv, num_heads)
    lse = torch.empty(len(out), num_heads[0], dtype=torch.float32, device=qkv.device)
    _attention_fwd_kernel[(len(plan.query_tiles), num_heads[1])](
        qkv, plan.query_indices, plan.visible_until, plan.query_tiles, out, lse, sizes["D"] ** -0.5 * _LOG2E, len(out), len(qkv),
        qkv.stride(0), out.stride(0), **sizes, QUERIES=count_tile_queries(sizes["G"]), PAIRS=BLOCK_M, BLOCK=BLOCK_N,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return lse


def attention_backward(
    grad: Float[Tensor, "M _"],
    qkv: Float[Tensor, "T _"],
    attended: Float[Tensor, "M _"],
    lse: Float32[Tensor, "M H"] | None,
    plan: AttentionPlan,
    num_heads: Heads,
) -> Float[Tensor, "T _"]:
    """The gradient of qkv; 0 for the queries of rows that are none (all are one where queries are as many as rows)."""
    if lse is None:
        return _attention_backward_reference(grad, qkv, plan, num_heads)
    sizes, (H, K) = _build_constexprs(qkv, num_heads), num_heads
    M, T, D = len(grad), len(qkv), sizes["D"]
    scale = D**-0.5
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if M < T:
        dqkv[:, : H * D].zero_()
    delta = torch.empty_like(lse)
    _attention_bwd_dq_kernel[(len(plan.query_tiles), K)](
        qkv, grad, attended, lse, plan.query_indices, plan.visible_until, plan.query_tiles, dqkv, delta, scale, scale * _LOG2E, M, T,
        qkv.stride(0), grad.stride(0), attended.stride(0), **sizes, QUERIES=count_tile_queries(sizes["G"]), PAIRS=BLOCK_M,
        BLOCK=BLOCK_N, num_warps=4, num_stages=2,
    )  # fmt: skip
    parts = torch.empty(len(plan.dkv_tasks), K, 2, BLOCK_N, D, dtype=torch.float32, device=qkv.device)
    _attention_bwd_dkv_kernel[(len(plan.dkv_tasks), K)](
        qkv, grad, lse, delta, plan.query_indices, plan.visible_until, plan.dkv_tasks, parts, scale, scale * _LOG2E, T, qkv.stride(0),
        grad.stride(0), **sizes, QUERIES=_BWD_BLOCK_M // sizes["G"], PAIRS=_BWD_BLOCK_M, BLOCK=BLOCK_N,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    _reduce_dkv_kernel[(len(plan.dkv_task_offsets) - 1, 2 * K, BLOCK_N // _REDUCE_KEYS)](
        parts, plan.dkv_task_offsets, dqkv, T, dqkv.stride(0), K=K, H=H, D=D, D_BLOCK=sizes["D_BLOCK"], BLOCK=BLOCK_N,
        KEYS=_REDUCE_KEYS, AT_ONCE=8, num_warps=4,
    )  # fmt: skip
    return dqkv


def attention_reference(qkv: Float[Tensor, "T _"], plan: AttentionPlan, num_heads: Heads) -> Float[Tensor, "M _"]:
    H, K = num_heads
    q, k, v = qkv.view(len(qkv), H + 2 * K, -1).split([H, K, K], 1)
    parts = []
    for rows in plan.query_indices.long().split(_REFERENCE_QUERIES):
        keys = (plan.visible_until[: rows[-1] + 1] > rows[0]).nonzero()[:, 0]
        seen = (keys <= rows[:, None]) & (rows[:, None] < plan.visible_until[keys])
        their, values = (part[keys].repeat_interleave(H // K, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[rows], their) * q.shape[-1] ** -0.5
        likely = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen
        parts.append(torch.einsum("hqk,khd->qhd", likely, values).flatten(1))
    return torch.cat(parts)


def _attention_backward_reference(
    grad: Float[Tensor, "M _"], qkv: Float[Tensor, "T _"], plan: AttentionPlan, num_heads: Heads
) -> Float[Tensor, "T _"]:
    with torch.enable_grad():
        leaf = qkv.detach().requires_grad_()
        # Of a sum: given the gradient of what is no scalar, torch imports sympy to compare their shapes.
        made = (attention_reference(leaf, plan, num_heads) * grad).sum()
    return torch.autograd.grad(made, leaf)[0]


def _use_kernels(rows: Tensor) -> bool:
    """fp32 has no tensor cores: there the definition is as good."""
    return rows.is_cuda and rows.dtype in (torch.bfloat16, torch.float16)


def _build_constexprs(qkv: Float[Tensor, "T _"], num_heads: Heads) -> dict[str, int]:
    H, K = num_heads
    D = qkv.shape[1] // (H + 2 * K)
    return {"H": H, "K": K, "G": H // K, "D": D, "D_BLOCK": max(16, triton.next_power_of_2(D))}


if triton is not None:

    @triton.jit
    @no_type_check
    def _load_query_tile(rows, begin, end, G: tl.constexpr, QUERIES: tl.constexpr, PAIRS: tl.constexpr):
        """(query, its head in the group, its row, whether it is there) of QUERIES queries' heads, from `begin` on."""
        pair = tl.arange(0, PAIRS)
        query = begin + pair // G
        there = (pair < QUERIES * G) & (query < end)
        return query, pair % G, tl.load(rows + query, mask=there, other=0), there

    @triton.jit
    @no_type_check
    def _load_kv_block(
        qkv, ends, key, head, T, stride, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr
    ):
        """(keys, values, who sees them last) of some rows, of a key head."""
        at = tl.arange(0, D_BLOCK)
        mine = (key < T)[:, None] & (at < D)[None, :]
        place = qkv + key.to(tl.int64)[:, None] * stride + (H + head) * D + at[None, :]
        k = tl.load(place, mask=mine, other=0.0)
        v = tl.load(place + K * D, mask=mine, other=0.0)
        return k, v, tl.load(ends + key, mask=key < T, other=0)

    @triton.jit
    @no_type_check
    def _attention_fwd_kernel(
        qkv, rows, ends, tiles, out, lse, scale, M, T, stride, out_stride,
        H: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
        QUERIES: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip  # one program a tile and key head
        tile, head = tl.program_id(0), tl.program_id(1)
        query, g, row, there = _load_query_tile(rows, tile * QUERIES, M, G, QUERIES, PAIRS)
        at = tl.arange(0, D_BLOCK)
        wide = there[:, None] & (at < D)[None, :]
        column = (head * G + g)[:, None] * D + at[None, :]
        q = tl.load(qkv + row.to(tl.int64)[:, None] * stride + column, mask=wide, other=0.0)
        top = tl.full((PAIRS,), float("-inf"), tl.float32)
        total = tl.zeros((PAIRS,), tl.float32)
        value = tl.zeros((PAIRS, D_BLOCK), tl.float32)
        before, gap, count = tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
        for i in range(0, count):
            key = (i + tl.where(i >= before, gap, 0)) * BLOCK + tl.arange(0, BLOCK)
            k, v, end = _load_kv_block(qkv, ends, key, head, T, stride, H, K, D, D_BLOCK)
            score = tl.dot(q, tl.trans(k)) * scale
            seen = there[:, None] & (key[None, :] <= row[:, None]) & (row[:, None] < end[None, :])
            score = tl.where(seen, score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
            likely = tl.exp2(score - safe[:, None])
            shrunk = tl.exp2(top - safe)
            total = total * shrunk + tl.sum(likely, 1)
            value = tl.dot(likely.to(v.dtype), v, value * shrunk[:, None])
            top = higher
        any_seen = total > 0
        made = value / tl.where(any_seen, total, 1.0)[:, None]
        tl.store(out + query.to(tl.int64)[:, None] * out_stride + column, made.to(out.dtype.element_ty), mask=wide)
        kept = tl.where(any_seen, top + tl.log2(total), 0.0)
        tl.store(lse + query * H + head * G + g, kept, mask=there)

    @triton.jit
    @no_type_check
    def _attention_bwd_dq_kernel(
        qkv, grad, attended, lse, rows, ends, tiles, dqkv, delta, scale, scale2, M, T, stride, grad_stride, out_stride,
        H: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
        QUERIES: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip  # dQ and Σ dO∘O of a tile and key head
        tile, head = tl.program_id(0), tl.program_id(1)
        query, g, row, there = _load_query_tile(rows, tile * QUERIES, M, G, QUERIES, PAIRS)
        at = tl.arange(0, D_BLOCK)
        wide = there[:, None] & (at < D)[None, :]
        column = (head * G + g)[:, None] * D + at[None, :]
        wise = query.to(tl.int64)[:, None]
        do = tl.load(grad + wise * grad_stride + column, mask=wide, other=0.0)
        o = tl.load(attended + wise * out_stride + column, mask=wide, other=0.0)
        sums = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
        slot = query * H + head * G + g
        tl.store(delta + slot, sums, mask=there)
        log = tl.load(lse + slot, mask=there, other=0.0)
        q = tl.load(qkv + row.to(tl.int64)[:, None] * stride + column, mask=wide, other=0.0)
        dq = tl.zeros((PAIRS, D_BLOCK), tl.float32)
        before, gap, count = tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
        for i in range(0, count):
            key = (i + tl.where(i >= before, gap, 0)) * BLOCK + tl.arange(0, BLOCK)
            k, v, end = _load_kv_block(qkv, ends, key, head, T, stride, H, K, D, D_BLOCK)
            score = tl.dot(q, tl.trans(k)) * scale2
            seen = there[:, None] & (key[None, :] <= row[:, None]) & (row[:, None] < end[None, :])
            likely = tl.where(seen, tl.exp2(score - log[:, None]), 0.0)
            ds = likely * (tl.dot(do, tl.trans(v)) - sums[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq)
        place = dqkv + row.to(tl.int64)[:, None] * ((H + 2 * K) * D) + column
        tl.store(place, (dq * scale).to(dqkv.dtype.element_ty), mask=wide)

    @triton.jit
    @no_type_check
    def _attention_bwd_dkv_kernel(
        qkv, grad, lse, delta, rows, ends, tasks, parts, scale, scale2, T, stride, grad_stride,
        H: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr,
        QUERIES: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip  # a task's part of dK and dV, of a key head
        task, head = tl.program_id(0), tl.program_id(1)
        block, first, end_query = (
            tl.load(tasks + 3 * task),
            tl.load(tasks + 3 * task + 1),
            tl.load(tasks + 3 * task + 2),
        )
        if first < end_query:
            at = tl.arange(0, D_BLOCK)
            key = block * BLOCK + tl.arange(0, BLOCK)
            k, v, end = _load_kv_block(qkv, ends, key, head, T, stride, H, K, D, D_BLOCK)
            dk = tl.zeros((BLOCK, D_BLOCK), tl.float32)
            dv = tl.zeros((BLOCK, D_BLOCK), tl.float32)
            for begin in range(first, end_query, QUERIES):
                query, g, row, there = _load_query_tile(rows, begin, end_query, G, QUERIES, PAIRS)
                wide = there[:, None] & (at < D)[None, :]
                column = (head * G + g)[:, None] * D + at[None, :]
                q = tl.load(qkv + row.to(tl.int64)[:, None] * stride + column, mask=wide, other=0.0)
                do = tl.load(grad + query.to(tl.int64)[:, None] * grad_stride + column, mask=wide, other=0.0)
                slot = query * H + head * G + g
                log = tl.load(lse + slot, mask=there, other=0.0)
                sums = tl.load(delta + slot, mask=there, other=0.0)
                score = tl.dot(k, tl.trans(q)) * scale2
                seen = there[None, :] & (key[:, None] <= row[None, :]) & (row[None, :] < end[:, None])
                likely = tl.where(seen, tl.exp2(score - log[None, :]), 0.0)
                dv = tl.dot(likely.to(do.dtype), do, dv)
                ds = likely * (tl.dot(v, tl.trans(do)) - sums[None, :])
                dk = tl.dot(ds.to(q.dtype), q, dk)
            part = parts + (task * K + head).to(tl.int64) * (2 * BLOCK * D)
            place = tl.arange(0, BLOCK)[:, None] * D + at[None, :]
            tl.store(part + place, dk * scale, mask=(at < D)[None, :])
            tl.store(part + BLOCK * D + place, dv, mask=(at < D)[None, :])

    @triton.jit
    @no_type_check
    def _reduce_dkv_kernel(
        parts, starts, dqkv, T, stride,
        K: tl.constexpr, H: tl.constexpr, D: tl.constexpr, D_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
        KEYS: tl.constexpr, AT_ONCE: tl.constexpr,
    ):  # fmt: skip  # dK or dV of some keys of a block and a head: its tasks' parts, added up one after the other
        block, column = tl.program_id(0), tl.program_id(1)  # columns: K heads of keys, then K of values
        kind, head = column // K, column % K
        at, key = tl.arange(0, D_BLOCK)[None, :], tl.program_id(2) * KEYS + tl.arange(0, KEYS)[:, None]
        row = block * BLOCK + key
        mine = (at < D) & (row < T)
        total = tl.zeros((KEYS, D_BLOCK), tl.float32)
        end = tl.load(starts + block + 1)
        for first in range(tl.load(starts + block), end, AT_ONCE):
            for i in tl.static_range(AT_ONCE):  # read together: nothing waits for one that is on its way
                part = parts + (((first + i) * K + head) * 2 + kind).to(tl.int64) * (BLOCK * D)
                total += tl.load(part + key * D + at, mask=mine & (first + i < end), other=0.0)
        place = dqkv + row.to(tl.int64) * stride + (H + column) * D + at
        tl.store(place, total.to(dqkv.dtype.element_ty), mask=mine)
