"""Attention over the segments of a packed row, forward and backward, without autograd.

    queries  0 ─── 5 ── 8 ─────── 16      segments' own rows
    keys     0 ─── 5 ─────── 13 ────── 26  their ancestors' rows, then their own: a row sees its segment's keys up to
                                           itself (causal, aligned at the bottom right); one that stands before
                                           them all sees none, and attends to zero

On CUDA in half precision the flash kernels inside torch take queries and keys as they are, with grouped heads;
elsewhere every segment is plain attention.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int32
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Borders:
    """Segments' borders among the queries and among the keys, and the longest of each."""

    queries: Int32[Tensor, " B"]
    keys: Int32[Tensor, " B"]
    longest_query: int
    longest_key: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What the backward pass needs of a forward one besides its inputs and output."""

    lse: Tensor
    random: tuple[Tensor, Tensor]


def attend(
    q: Float[Tensor, "T H D"], k: Float[Tensor, "N K D"], v: Float[Tensor, "N K D"], borders: Borders
) -> tuple[Float[Tensor, "T H D"], Kept | None]:
    """softmax(q·kᵀ/√D)·v within every segment."""
    if not _flash(q):
        return _attended(q, k, v, borders), None
    attended, lse, random, unused, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, borders.queries, borders.keys, borders.longest_query, borders.longest_key, 0.0, True, False,
        scale=q.shape[-1] ** -0.5, window_size_left=-1, window_size_right=0,
    )  # fmt: skip
    return attended, Kept(lse, (random, unused))


def attend_backward(
    grad: Float[Tensor, "T H D"],
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "N K D"],
    v: Float[Tensor, "N K D"],
    attended: Float[Tensor, "T H D"],
    borders: Borders,
    kept: Kept | None,
) -> tuple[Float[Tensor, "T H D"], Float[Tensor, "N K D"], Float[Tensor, "N K D"]]:
    """Gradients of q, k and v."""
    if kept is None:
        with torch.enable_grad():
            q, k, v = (rows.detach().requires_grad_() for rows in (q, k, v))
            # Of a sum: given the gradient of what is no scalar, torch imports sympy to compare their shapes.
            made = (_attended(q, k, v, borders) * grad).sum()
        dq, dk, dv = torch.autograd.grad(made, (q, k, v))
        return dq, dk, dv
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, attended, kept.lse, borders.queries, borders.keys, borders.longest_query,
        borders.longest_key, 0.0, True, *kept.random,
        scale=q.shape[-1] ** -0.5, window_size_left=-1, window_size_right=0,
    )  # fmt: skip
    return dq, dk, dv


def _flash(rows: Tensor) -> bool:
    return rows.is_cuda and rows.dtype in (torch.bfloat16, torch.float16)


def _attended(
    q: Float[Tensor, "T H D"], k: Float[Tensor, "N K D"], v: Float[Tensor, "N K D"], borders: Borders
) -> Float[Tensor, "T H D"]:
    repeat = q.shape[1] // k.shape[1]
    parts = []
    for (q0, q1), (k0, k1) in _segments(borders):
        keys, values = (rows[k0:k1].repeat_interleave(repeat, 1) for rows in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[q0:q1], keys) * q.shape[-1] ** -0.5
        seen = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool, device=q.device).tril((k1 - k0) - (q1 - q0))
        likely = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen
        parts.append(torch.einsum("hqk,khd->qhd", likely, values))
    return torch.cat(parts)


def _segments(borders: Borders) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    queries, keys = borders.queries.tolist(), borders.keys.tolist()
    return ((rows, seen) for rows, seen in zip(pairwise(queries), pairwise(keys), strict=True) if rows[1] > rows[0])
