"""Attention in a tree of rows against one dense masked softmax, forward and backward."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.kernels.attention import attention_backward, attention_forward, attention_reference
from lorgnette.kernels.attention_plan import AttentionPlan

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SMALL = [12, 12, 5, 4, 5, 12, 8, 8, 12, 10, 12, 12, 0, 0]
"""0 1 and then, on 1: 2 3 · 4 — on 0 1: 5 and on it 6 7 · 8 9 — … and two rows that see nothing."""


def ends_of(*lengths: int, shared: int = 0, padding: int = 0) -> np.ndarray:
    """Branches of so many rows that hang on the first `shared` rows of the first."""
    ends = np.repeat(np.cumsum(lengths), lengths)
    ends[:shared] = len(ends)
    return np.concatenate([ends, np.zeros(padding)]).astype(np.int32)


def drawn(T: int, M: int, H: int, K: int, D: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """qkv, and the gradient of what is attended."""
    torch.manual_seed(0)
    return torch.randn(T, (H + 2 * K) * D).to(dtype), torch.randn(M, H * D).to(dtype)


def sight(rows: np.ndarray, ends: np.ndarray, group: int, device: str = "cpu") -> AttentionPlan:
    return AttentionPlan.from_numpy(rows.astype(np.int32), ends, group, torch.device(device))


def dense(qkv: Tensor, rows: np.ndarray, ends: np.ndarray, H: int, K: int) -> Tensor:
    T = len(qkv)
    q, k, v = qkv.view(T, H + 2 * K, -1).split([H, K, K], 1)
    k, v = (part.repeat_interleave(H // K, 1) for part in (k, v))
    keys = np.arange(T)
    seen = torch.from_numpy((keys <= rows[:, None]) & (rows[:, None] < ends))
    scores = torch.einsum("qhd,khd->hqk", q[rows], k) / q.shape[-1] ** 0.5
    likely = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num()
    return torch.einsum("hqk,khd->qhd", likely, v).flatten(1)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize(
    "ends", [np.array(SMALL, np.int32), ends_of(300, 40, 1, 90), ends_of(290, 30, 8, 70, shared=200, padding=7)]
)
def test_it_is_the_dense_softmax(ends: np.ndarray, keep: int) -> None:
    rows = np.arange(0, len(ends), keep)
    qkv, grad = drawn(len(ends), len(rows), 4, 2, 8)
    leaf = qkv.clone().requires_grad_()
    wanted = dense(leaf, rows, ends, 4, 2)
    (gradient,) = torch.autograd.grad(wanted, leaf, grad)
    there, wide = sight(rows, ends, 2), torch.full((len(rows), 40), 7.0, dtype=torch.float64)
    lse = attention_forward(qkv, there, (4, 2), wide[:, 4:36])
    torch.testing.assert_close(wide[:, 4:36], wanted.detach())
    assert (wide[:, :4] == 7).all()
    assert (wide[:, 36:] == 7).all()
    torch.testing.assert_close(attention_backward(grad, qkv, wide[:, 4:36], lse, there, (4, 2)), gradient)
    other = ends.copy()
    other[0] = 1  # the comparison can fail: nobody but the first row sees the first key
    assert (attention_reference(qkv, sight(rows, other, 2), (4, 2)) - wanted).abs().max() > 1e-3


def test_a_row_sees_its_ancestors_and_no_other_row() -> None:
    ends, rows = np.array(SMALL, np.int32), np.arange(len(SMALL))
    qkv, _ = drawn(len(ends), len(ends), 2, 1, 8)
    found = attention_reference(qkv, sight(rows, ends, 2), (2, 1))
    for key, seen in ((0, range(12)), (2, [2, 3, 4]), (3, [3]), (6, [6, 7]), (9, [9]), (11, [11]), (12, []), (13, [])):
        moved = qkv.clone()
        moved[key, 24:] += 1  # its value
        changed = (attention_reference(moved, sight(rows, ends, 2), (2, 1)) != found).any(1)
        assert changed.nonzero().flatten().tolist() == list(seen)
    assert not found[12:].any()


def test_its_gradients_need_no_sympy() -> None:
    """Which is a second of imports before the first step."""
    code = (
        "import sys, numpy, torch\n"
        "from lorgnette.kernels.attention import attend_backward\n"
        "from lorgnette.kernels.attention_plan import Sight\n"
        "rows, qkv = numpy.arange(2, dtype=numpy.int32), torch.ones(2, 12)\n"
        "sight = Sight.of(rows, rows + 1, 1, torch.device('cpu'))\n"
        "attend_backward(qkv[:, :4], qkv, qkv[:, :4], None, sight, (1, 1))\n"
        "sys.exit('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


CASES = [
    (ends_of(140, 17, 64, 139, 1, 3), 6, 2, 128),
    (ends_of(700, 9, 14, 11, 300, 8, shared=113, padding=21), 12, 2, 128),
    (ends_of(130, 60, shared=20, padding=1), 4, 4, 64),
    (ends_of(70, 20, 1), 7, 1, 24),
    (np.array(SMALL, np.int32), 2, 1, 16),
]


@CUDA
@pytest.mark.parametrize("keep", [1, 5])
@pytest.mark.parametrize(("ends", "H", "K", "D"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernels_are_the_definition(
    ends: np.ndarray, H: int, K: int, D: int, dtype: torch.dtype, keep: int
) -> None:
    """Of the same rounded inputs; twice the same bits."""
    rows = np.arange(0, len(ends), keep)
    if not ends[-1]:  # queries of padding, several of one row
        rows = np.concatenate([rows, [len(ends) - 1] * 9])
    qkv, grad = drawn(len(ends), len(rows), H, K, D, dtype)
    leaf = qkv.double().requires_grad_()
    wanted = dense(leaf, rows, ends, H, K)
    (gradient,) = torch.autograd.grad(wanted, leaf, grad.double())
    there, results = sight(rows, ends, H // K, "cuda"), []
    for _ in range(2):
        wide = torch.full((len(rows), H * D + 16), 7.0, dtype=dtype, device="cuda")
        out = wide[:, 8:-8]
        lse = attention_forward(qkv.cuda(), there, (H, K), out)
        assert lse is not None
        made = attention_backward(grad.cuda(), qkv.cuda(), out, lse, there, (H, K))
        assert (wide[:, :8] == 7).all()
        assert (wide[:, -8:] == 7).all()
        results.append((out.clone(), made))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    close = 1e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(results[0][0].double().cpu(), wanted.detach(), atol=close, rtol=close)
    largest = gradient.abs().max().item()
    torch.testing.assert_close(results[0][1].double().cpu(), gradient, atol=close * max(1, largest / 4), rtol=close)
