"""Attention over segments against one dense masked softmax, forward and backward."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lorgnette.model.varlen import Borders, attend, attend_backward

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
QUERIES, KEYS = [0, 5, 8, 12], [0, 5, 13, 17]
"""Three segments; the second sees five rows before its own."""


def drawn(D: int = 8) -> list[Tensor]:
    """q, k, v and the gradient of what is attended."""
    torch.manual_seed(0)
    return [torch.randn(12, 4, D), torch.randn(17, 2, D), torch.randn(17, 2, D), torch.randn(12, 4, D)]


def borders(empty: int, device: str = "cpu") -> Borders:
    """empty: segments without rows behind the others."""
    ends = (torch.tensor([*b, *[b[-1]] * empty], dtype=torch.int32, device=device) for b in (QUERIES, KEYS))
    return Borders(*ends, 5, 8)


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
    q, k, v, grad = drawn()
    leaves = [rows.clone().requires_grad_() for rows in (q, k, v)]
    wanted = dense(*leaves)
    gradients = torch.autograd.grad(wanted, leaves, grad)
    with torch.no_grad():
        found, kept = attend(q, k, v, borders(empty))
        torch.testing.assert_close(found, wanted)
        for one, other in zip(attend_backward(grad, q, k, v, found, borders(empty), kept), gradients, strict=True):
            torch.testing.assert_close(one, other)


def test_a_row_sees_its_ancestors_and_no_later_row() -> None:
    q, k, v, _ = drawn()
    found, _ = attend(q, k, v, borders(0))
    for key, rows in ((4, [4]), (5, [5, 6, 7]), (11, [6, 7]), (12, [7]), (13, [8, 9, 10, 11])):
        moved = v.clone()
        moved[key] += 1
        changed = (attend(q, k, moved, borders(0))[0] != found).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == rows


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_rows_before_all_keys_attend_to_nothing(device: str) -> None:
    """As padding's may: a segment of 200 rows and three keys, between others, and one of rows alone."""
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    q, k, v, grad = (torch.randn(n, h, 64, device=device, dtype=dtype) for n, h in ((212, 4), (9, 2), (9, 2), (212, 4)))
    ends = (torch.tensor(at, dtype=torch.int32, device=device) for at in ([0, 4, 204, 209, 212], [0, 4, 7, 9, 9]))
    there = Borders(*ends, 200, 4)
    found, kept = attend(q, k, v, there)
    dq, dk, dv = attend_backward(grad, q, k, v, found, there, kept)
    blind = [*range(4, 201), *range(204, 207), *range(209, 212)]
    assert not found[blind].any()
    assert not dq[blind].any()
    assert all(rows.isfinite().all() for rows in (found, dq, dk, dv))
    others = [row for row in range(212) if row not in blind]
    assert found[others].flatten(1).any(1).all()
    assert dk.flatten(1).any(1)[1:].all()  # one key alone leaves no choice: the first segment's is with others
    again, _ = attend(
        q[201:204], k[4:7], v[4:7], Borders(*(torch.tensor([0, 3], dtype=torch.int32, device=device),) * 2, 3, 3)
    )
    torch.testing.assert_close(found[201:204], again)


@CUDA
@pytest.mark.parametrize("empty", [0, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_flash_kernels_are_the_plain_softmax(empty: int, dtype: torch.dtype) -> None:
    """Of the same rounded inputs; keys and values are columns of one matrix, as the decoder passes them."""
    q, k, v, grad = (rows.to(dtype) for rows in drawn(64))
    exact = [rows.float() for rows in (q, k, v, grad)]
    wanted, _ = attend(*exact[:3], borders(empty))
    gradients = attend_backward(exact[3], *exact[:3], wanted, borders(empty), None)
    kv, there = torch.cat([k, v], 1).cuda(), borders(empty, "cuda")
    moved = q.cuda(), kv[:, :2], kv[:, 2:]
    found, kept = attend(*moved, there)
    assert kept is not None
    made = attend_backward(grad.cuda(), *moved, found, there, kept)
    for one, other in zip((found, *made), (wanted, *gradients), strict=True):
        torch.testing.assert_close(one.float().cpu(), other, atol=2e-2, rtol=2e-2)


def test_its_gradients_need_no_sympy() -> None:
    """Which is a second of imports before the first step."""
    code = (
        "import sys, torch\n"
        "from lorgnette.model.varlen import Borders, attend_backward\n"
        "q, ends = torch.ones(2, 1, 4), torch.tensor([0, 2], dtype=torch.int32)\n"
        "attend_backward(q, q, q, q, q, Borders(ends, ends, 2, 2), None)\n"
        "sys.exit('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
