"""Attention in a packed prefix tree, forward and backward: query q sees the keys k ≤ q < visible_until[k].

    qkv  [T, (H+2K)·D]  the heads of queries, keys and values side by side; H/K = G query heads share a key head.
                        The values may be those of another matrix of this layout.

    S = QKᵀ/√D   P = exp(S − lse)   O = PV      dS = P ∘ (dO·Vᵀ − Σ dO∘O)   dQ = dS·K/√D   dK = dSᵀQ/√D   dV = PᵀdO
    (FlashAttention-2: Dao 2023; the mask as one range of queries per key: FlashMask, Wang et al. 2024)

The G heads of a query are rows of one matrix product. So a caption of a dozen tokens fills a tile, every key is read
once for all of them, and nothing is copied where many examples share a prefix. P and dS are rounded to the inputs'
dtype before they are multiplied; sums are fp32. Every sum has a fixed order: two equal runs are equal in every bit.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.kernels.attention_plan import AttentionPlan
from lorgnette.kernels.tiles import AttentionTiles
from lorgnette.kernels.triton_import import tl, triton

HeadCounts = tuple[int, int]
"""(H, K): query heads, key-value heads."""
_LOG2E = 1.4426950408889634
REDUCE_KEYS = 16
"""Keys per program of the kernel that adds partial sums."""
_REFERENCE_QUERIES = 256
"""Queries per step of the reference: bounds its memory."""


def attention_forward(
    qkv: Float[Tensor, "T _"],
    plan: AttentionPlan,
    num_heads: HeadCounts,
    out: Float[Tensor, "M _"],
    values: Float[Tensor, "T _"] | None = None,
) -> Float32[Tensor, "M H"] | None:
    """out = softmax(q·kᵀ/√D)·v over the keys each query sees; 0 if it sees none. `out` may be columns of a wider
    matrix.

    values: the matrix whose last columns are the values; None: `qkv`.
    Returns the log-sum-exp that the backward pass needs, in base 2: log₂ Σ 2^(S·log₂e); None from the reference.
    """
    if not (qkv.is_cuda and qkv.dtype in (torch.bfloat16, torch.float16)):  # fp32 would gain nothing: no tensor cores
        out.copy_(attention_reference(_join_values(qkv, values, num_heads), plan, num_heads))
        return None
    sizes = _build_constexprs(qkv, num_heads)
    lse = torch.empty(len(out), num_heads[0], dtype=torch.float32, device=qkv.device)
    _attention_fwd_kernel[(len(plan.query_tiles), num_heads[1])](
        qkv, qkv if values is None else values, plan.query_indices, plan.visible_until, plan.query_tiles, out, lse,
        sizes["D"] ** -0.5 * _LOG2E, len(out), len(qkv), qkv.stride(0), out.stride(0), **sizes,
        **_build_options(plan.tiles, plan.tiles.block_m, sizes["G"]),
    )  # fmt: skip
    return lse


def attention_backward(
    grad: Float[Tensor, "M _"],
    qkv: Float[Tensor, "T _"],
    attended: Float[Tensor, "M _"],
    lse: Float32[Tensor, "M H"] | None,
    plan: AttentionPlan,
    num_heads: HeadCounts,
    values: Float[Tensor, "T _"] | None = None,
) -> Float[Tensor, "T _"]:
    """The gradient of qkv; 0 for the query heads of tokens that are no queries (none where M = T).

    values: as in `attention_forward`.
    """
    if lse is None:
        with torch.enable_grad():
            leaf = _join_values(qkv, values, num_heads).detach().requires_grad_()
            # The gradient of a scalar: for any other output torch imports sympy to compare shapes.
            total = (attention_reference(leaf, plan, num_heads) * grad).sum()
        return torch.autograd.grad(total, leaf)[0]
    sizes, (H, K) = _build_constexprs(qkv, num_heads), num_heads
    M, T, D = len(grad), len(qkv), sizes["D"]
    scale, values = D**-0.5, qkv if values is None else values
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if M < T:
        dqkv[:, : H * D].zero_()
    # dQ, one program per query tile; it also stores delta = Σ dO∘O for the next kernel.
    delta = torch.empty_like(lse)
    _attention_bwd_dq_kernel[(len(plan.query_tiles), K)](
        qkv, values, grad, attended, lse, plan.query_indices, plan.visible_until, plan.query_tiles, dqkv, delta, scale,
        scale * _LOG2E, M, T, qkv.stride(0), grad.stride(0), attended.stride(0), **sizes,
        **_build_options(plan.tiles, plan.tiles.block_m, sizes["G"]),
    )  # fmt: skip
    # dK and dV, one program per task. If its block has more than one, each writes an fp32 partial sum; no atomics make
    # the order random.
    block_n = plan.tiles.block_n
    partials = torch.empty(len(plan.dkv_tasks), K, 2, block_n, D, dtype=torch.float32, device=qkv.device)
    _attention_bwd_dkv_kernel[(len(plan.dkv_tasks), K)](
        qkv, values, grad, lse, delta, plan.query_indices, plan.visible_until, plan.dkv_tasks, plan.dkv_task_offsets,
        partials, dqkv, scale, scale * _LOG2E, T, qkv.stride(0), grad.stride(0), **sizes,
        **_build_options(plan.tiles, plan.tiles.bwd_block_m, sizes["G"]),
    )  # fmt: skip
    _reduce_dkv_kernel[(len(plan.dkv_task_offsets) - 1, 2 * K, block_n // REDUCE_KEYS)](
        partials, plan.dkv_task_offsets, dqkv, T, dqkv.stride(0), K=K, H=H, D=D, BLOCK_D=sizes["BLOCK_D"],
        BLOCK_N=block_n, KEYS=REDUCE_KEYS, UNROLL=8, num_warps=4,
    )  # fmt: skip
    return dqkv


def attention_reference(qkv: Float[Tensor, "T _"], plan: AttentionPlan, num_heads: HeadCounts) -> Float[Tensor, "M _"]:
    H, K = num_heads
    q, k, v = qkv.view(len(qkv), H + 2 * K, -1).split([H, K, K], 1)
    parts = []
    for rows in plan.query_indices.long().split(_REFERENCE_QUERIES):
        cols = (plan.visible_until[: rows[-1] + 1] > rows[0]).nonzero()[:, 0]
        visible = (cols <= rows[:, None]) & (rows[:, None] < plan.visible_until[cols])
        keys, values = (part[cols].repeat_interleave(H // K, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[rows], keys) * q.shape[-1] ** -0.5
        p = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1) * visible
        parts.append(torch.einsum("hqk,khd->qhd", p, values).flatten(1))
    return torch.cat(parts)


def _join_values(
    qkv: Float[Tensor, "T _"], values: Float[Tensor, "T _"] | None, num_heads: HeadCounts
) -> Float[Tensor, "T _"]:
    """One matrix with all of them, for the reference."""
    if values is None or values is qkv:
        return qkv
    H, K = num_heads
    end = qkv.shape[1] // (H + 2 * K) * (H + K)
    return torch.cat([qkv[:, :end], values[:, end:]], 1)


def _build_constexprs(qkv: Float[Tensor, "T _"], num_heads: HeadCounts) -> dict[str, int]:
    H, K = num_heads
    D = qkv.shape[1] // (H + 2 * K)
    return {"H": H, "K": K, "G": H // K, "D": D, "BLOCK_D": max(16, triton.next_power_of_2(D))}


def _build_options(tiles: AttentionTiles, block_m: int, group_size: int) -> dict[str, int]:
    """Tile and launch options of the kernels that multiply."""
    return {
        "BLOCK_Q": block_m // group_size, "BLOCK_M": block_m, "BLOCK_N": tiles.block_n,
        "num_warps": tiles.num_warps, "num_stages": tiles.num_stages,
    }  # fmt: skip


if triton is not None:
    # Names: m runs over a tile's rows (a query and one of its G heads), q over queries, n over keys, d over a head's
    # channels. offs_*: indices; mask_*: inside the matrix; pos_m: the query's token index, to compare with keys.

    @triton.jit
    @no_type_check
    def _load_query_tile(query_indices, start, end, G: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr):
        """(query, its head in the group, its token index, mask) of each row of the tile that begins at `start`."""
        offs_m = tl.arange(0, BLOCK_M)
        offs_q = start + offs_m // G
        mask_m = (offs_m < BLOCK_Q * G) & (offs_q < end)
        return offs_q, offs_m % G, tl.load(query_indices + offs_q, mask=mask_m, other=0), mask_m

    @triton.jit
    @no_type_check
    def _load_kv_block(
        qkv, values, visible_until, offs_n, head, T, stride,
        H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """(k, v, visible_until) of some tokens, for one key head."""
        offs_d = tl.arange(0, BLOCK_D)
        mask_nd = (offs_n < T)[:, None] & (offs_d < D)[None, :]
        offs_k = offs_n.to(tl.int64)[:, None] * stride + (H + head) * D + offs_d[None, :]
        k = tl.load(qkv + offs_k, mask=mask_nd, other=0.0)
        v = tl.load(values + offs_k + K * D, mask=mask_nd, other=0.0)
        return k, v, tl.load(visible_until + offs_n, mask=offs_n < T, other=0)

    @triton.jit
    @no_type_check
    def _attention_fwd_kernel(
        qkv, values, query_indices, visible_until, query_tiles, out, lse, scale, M, T, stride, out_stride,
        H: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
        BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    ):  # fmt: skip
        """O and the log-sum-exp of one query tile and key head. scale: log₂e/√D, so that exp2 can be used."""
        tile, head = tl.program_id(0), tl.program_id(1)
        offs_q, g, pos_m, mask_m = _load_query_tile(query_indices, tile * BLOCK_Q, M, G, BLOCK_Q, BLOCK_M)
        offs_d = tl.arange(0, BLOCK_D)
        mask_md = mask_m[:, None] & (offs_d < D)[None, :]
        cols = (head * G + g)[:, None] * D + offs_d[None, :]
        q = tl.load(qkv + pos_m.to(tl.int64)[:, None] * stride + cols, mask=mask_md, other=0.0)
        # Running maximum, sum and output of the online softmax.
        m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        l_i = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        # The tile's key blocks: those before the skipped range, then those behind it.
        before, gap, count = (
            tl.load(query_tiles + 3 * tile),
            tl.load(query_tiles + 3 * tile + 1),
            tl.load(query_tiles + 3 * tile + 2),
        )
        for i in range(0, count):
            offs_n = (i + tl.where(i >= before, gap, 0)) * BLOCK_N + tl.arange(0, BLOCK_N)
            k, v, until_n = _load_kv_block(qkv, values, visible_until, offs_n, head, T, stride, H, K, D, BLOCK_D)
            qk = tl.dot(q, tl.trans(k)) * scale
            # A block may hold keys of other branches, and keys behind the query.
            mask_mn = mask_m[:, None] & (offs_n[None, :] <= pos_m[:, None]) & (pos_m[:, None] < until_n[None, :])
            qk = tl.where(mask_mn, qk, float("-inf"))
            m_new = tl.maximum(m_i, tl.max(qk, 1))
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # no visible key yet: −inf − (−inf) would be NaN
            p = tl.exp2(qk - m_safe[:, None])
            # Rescale what was summed under the old maximum.
            alpha = tl.exp2(m_i - m_safe)
            l_i = l_i * alpha + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
            m_i = m_new
        # Padding queries see no key: their output is 0, and an lse of 0 keeps the backward pass finite.
        has_keys = l_i > 0
        o = acc / tl.where(has_keys, l_i, 1.0)[:, None]
        tl.store(out + offs_q.to(tl.int64)[:, None] * out_stride + cols, o.to(out.dtype.element_ty), mask=mask_md)
        lse_i = tl.where(has_keys, m_i + tl.log2(l_i), 0.0)
        tl.store(lse + offs_q * H + head * G + g, lse_i, mask=mask_m)

    @triton.jit
    @no_type_check
    def _attention_bwd_dq_kernel(
        qkv, values, grad, attended, lse, query_indices, visible_until, query_tiles, dqkv, delta, scale, scale_log2, M,
        T, stride, grad_stride, out_stride,
        H: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
        BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    ):  # fmt: skip
        """dQ and delta = Σ dO∘O of one query tile and key head."""
        tile, head = tl.program_id(0), tl.program_id(1)
        offs_q, g, pos_m, mask_m = _load_query_tile(query_indices, tile * BLOCK_Q, M, G, BLOCK_Q, BLOCK_M)
        offs_d = tl.arange(0, BLOCK_D)
        mask_md = mask_m[:, None] & (offs_d < D)[None, :]
        cols = (head * G + g)[:, None] * D + offs_d[None, :]
        # dO and O are matrices of M queries; Q is found by token index.
        offs_q64 = offs_q.to(tl.int64)[:, None]
        do = tl.load(grad + offs_q64 * grad_stride + cols, mask=mask_md, other=0.0)
        o = tl.load(attended + offs_q64 * out_stride + cols, mask=mask_md, other=0.0)
        delta_i = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
        offs_lse = offs_q * H + head * G + g
        tl.store(delta + offs_lse, delta_i, mask=mask_m)
        lse_i = tl.load(lse + offs_lse, mask=mask_m, other=0.0)
        q = tl.load(qkv + pos_m.to(tl.int64)[:, None] * stride + cols, mask=mask_md, other=0.0)
        dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        before, gap, count = (
            tl.load(query_tiles + 3 * tile),
            tl.load(query_tiles + 3 * tile + 1),
            tl.load(query_tiles + 3 * tile + 2),
        )
        # The key blocks of the forward pass; P is recomputed from the saved lse.
        for i in range(0, count):
            offs_n = (i + tl.where(i >= before, gap, 0)) * BLOCK_N + tl.arange(0, BLOCK_N)
            k, v, until_n = _load_kv_block(qkv, values, visible_until, offs_n, head, T, stride, H, K, D, BLOCK_D)
            qk = tl.dot(q, tl.trans(k)) * scale_log2
            mask_mn = mask_m[:, None] & (offs_n[None, :] <= pos_m[:, None]) & (pos_m[:, None] < until_n[None, :])
            p = tl.where(mask_mn, tl.exp2(qk - lse_i[:, None]), 0.0)
            ds = p * (tl.dot(do, tl.trans(v)) - delta_i[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq)
        dq_ptrs = dqkv + pos_m.to(tl.int64)[:, None] * ((H + 2 * K) * D) + cols
        tl.store(dq_ptrs, (dq * scale).to(dqkv.dtype.element_ty), mask=mask_md)

    @triton.jit
    @no_type_check
    def _attention_bwd_dkv_kernel(
        qkv, values, grad, lse, delta, query_indices, visible_until, dkv_tasks, task_offsets, partials, dqkv, scale,
        scale_log2, T, stride, grad_stride,
        H: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
        BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    ):  # fmt: skip
        """One task's part of dK and dV, for one key head: all of it if the block has no other task."""
        task, head = tl.program_id(0), tl.program_id(1)
        block, first, end = (
            tl.load(dkv_tasks + 3 * task),
            tl.load(dkv_tasks + 3 * task + 1),
            tl.load(dkv_tasks + 3 * task + 2),
        )
        if first < end:
            offs_d = tl.arange(0, BLOCK_D)
            offs_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
            k, v, until_n = _load_kv_block(qkv, values, visible_until, offs_n, head, T, stride, H, K, D, BLOCK_D)
            dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            # Keys stay in registers; the queries that see them stream by. Scores are transposed: keys × rows.
            for start in range(first, end, BLOCK_Q):
                offs_q, g, pos_m, mask_m = _load_query_tile(query_indices, start, end, G, BLOCK_Q, BLOCK_M)
                mask_md = mask_m[:, None] & (offs_d < D)[None, :]
                cols = (head * G + g)[:, None] * D + offs_d[None, :]
                q = tl.load(qkv + pos_m.to(tl.int64)[:, None] * stride + cols, mask=mask_md, other=0.0)
                do = tl.load(grad + offs_q.to(tl.int64)[:, None] * grad_stride + cols, mask=mask_md, other=0.0)
                offs_lse = offs_q * H + head * G + g
                lse_i = tl.load(lse + offs_lse, mask=mask_m, other=0.0)
                delta_i = tl.load(delta + offs_lse, mask=mask_m, other=0.0)
                qk = tl.dot(k, tl.trans(q)) * scale_log2
                mask_nm = mask_m[None, :] & (offs_n[:, None] <= pos_m[None, :]) & (pos_m[None, :] < until_n[:, None])
                p = tl.where(mask_nm, tl.exp2(qk - lse_i[None, :]), 0.0)
                dv = tl.dot(p.to(do.dtype), do, dv)
                ds = p * (tl.dot(v, tl.trans(do)) - delta_i[None, :])
                dk = tl.dot(ds.to(q.dtype), q, dk)
            if tl.load(task_offsets + block + 1) - tl.load(task_offsets + block) == 1:
                ptrs = dqkv + offs_n.to(tl.int64)[:, None] * ((H + 2 * K) * D) + (H + head) * D + offs_d[None, :]
                mask_nd = (offs_n < T)[:, None] & (offs_d < D)[None, :]
                tl.store(ptrs, (dk * scale).to(dqkv.dtype.element_ty), mask=mask_nd)
                tl.store(ptrs + K * D, dv.to(dqkv.dtype.element_ty), mask=mask_nd)
            else:
                out = partials + (task * K + head).to(tl.int64) * (2 * BLOCK_N * D)
                offs_nd = tl.arange(0, BLOCK_N)[:, None] * D + offs_d[None, :]
                tl.store(out + offs_nd, dk * scale, mask=(offs_d < D)[None, :])
                tl.store(out + BLOCK_N * D + offs_nd, dv, mask=(offs_d < D)[None, :])

    @triton.jit
    @no_type_check
    def _reduce_dkv_kernel(
        partials, task_offsets, dqkv, T, stride,
        K: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
        KEYS: tl.constexpr, UNROLL: tl.constexpr,
    ):  # fmt: skip
        """dK or dV of some keys of a block, for one head: the partial sums of its tasks, added in task order.

        A single task has written its block itself.
        """
        block, column = tl.program_id(0), tl.program_id(1)  # columns: K heads of keys, then K of values
        begin, end = tl.load(task_offsets + block), tl.load(task_offsets + block + 1)
        if end - begin != 1:
            kind, head = column // K, column % K
            offs_d, offs_n = tl.arange(0, BLOCK_D)[None, :], tl.program_id(2) * KEYS + tl.arange(0, KEYS)[:, None]
            pos_n = block * BLOCK_N + offs_n
            mask_nd = (offs_d < D) & (pos_n < T)
            acc = tl.zeros((KEYS, BLOCK_D), tl.float32)
            for first in range(begin, end, UNROLL):
                for i in tl.static_range(UNROLL):  # unrolled: the loads are issued together, their latencies overlap
                    part = partials + (((first + i) * K + head) * 2 + kind).to(tl.int64) * (BLOCK_N * D)
                    acc += tl.load(part + offs_n * D + offs_d, mask=mask_nd & (first + i < end), other=0.0)
            out_ptrs = dqkv + pos_n.to(tl.int64) * stride + (H + column) * D + offs_d
            tl.store(out_ptrs, acc.to(dqkv.dtype.element_ty), mask=mask_nd)
