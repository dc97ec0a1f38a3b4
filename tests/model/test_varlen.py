"""Attention over segments against one dense masked softmax, forward and backward."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lorgnette.model.varlen import Borders, attend, attend_backward

QUERIES, KEYS = [0, 5, 8, 12], [0, 5, 13, 17]
"""Three segments; the second sees five rows before its own."""


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (rows.repeat_interleave(2, 1) for rows in (k, v))
    seen = torch.zeros(len(q), len(k), dtype=torch.bool)
    for (q0, q1), (k0, k1) in zip(pairwise(QUERIES), pairwise(KEYS), strict=True):
        for row in range(q0, q1):
            seen[row, k0 : k1 - (q1 - 1 - row)] = True  # the last row sees the last key
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("empty", [0, 2])
def test_it_is_the_dense_softmax(empty: int) -> None:
    """empty: segments without rows behind the others."""
    torch.manual_seed(0)
    q, k, v = torch.randn(12, 4, 8), torch.randn(17, 2, 8), torch.randn(17, 2, 8)
    grad = torch.randn(12, 4, 8)
    leaves = [rows.clone().requires_grad_() for rows in (q, k, v)]
    wanted = dense(*leaves)
    gradients = torch.autograd.grad(wanted, leaves, grad)
    starts, key_starts = (torch.tensor([*b, *[b[-1]] * empty], dtype=torch.int32) for b in (QUERIES, KEYS))
    borders = Borders(starts, key_starts, 5, 8)
    with torch.no_grad():
        found, kept = attend(q, k, v, borders)
        torch.testing.assert_close(found, wanted)
        for one, other in zip(attend_backward(grad, q, k, v, found, borders, kept), gradients, strict=True):
            torch.testing.assert_close(one, other)
