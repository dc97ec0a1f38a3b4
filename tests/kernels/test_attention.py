"""Attention in a prefix tree equals one dense masked softmax, forward and backward."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.kernels.attention import attention_backward, attention_forward, attention_reference
from lorgnette.kernels.attention_plan import AttentionPlan
from lorgnette.kernels.tiles import AttentionTiles, find_tiles

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SMALL = [12, 12, 5, 4, 5, 12, 8, 8, 12, 10, 12, 12, 0, 0]
"""Prefix 0 1 with the branches 2 (3 · 4), 5 (6 7), 8 9, … and two padding tokens that nothing sees."""


def make_branches(*lengths: int, shared: int = 0, padding: int = 0) -> np.ndarray:
    """visible_until of branches of these lengths that share the first `shared` tokens of the first."""
    visible_until = np.repeat(np.cumsum(lengths), lengths)
    visible_until[:shared] = len(visible_until)
    return np.concatenate([visible_until, np.zeros(padding)]).astype(np.int32)


def draw_inputs(T: int, M: int, H: int, K: int, D: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """qkv, and the gradient of the attended values."""
    torch.manual_seed(0)
    return torch.randn(T, (H + 2 * K) * D).to(dtype), torch.randn(M, H * D).to(dtype)


def make_plan(
    queries: np.ndarray,
    visible_until: np.ndarray,
    group_size: int,
    device: str = "cpu",
    tiles: AttentionTiles | None = None,
) -> AttentionPlan:
    return AttentionPlan.from_numpy(queries.astype(np.int32), visible_until, group_size, torch.device(device), tiles)


def split_values(qkv: Tensor, H: int, K: int) -> tuple[Tensor, Tensor]:
    """One matrix for queries and keys, one for values; NaN elsewhere."""
    queries_keys, values = qkv.clone(), qkv.clone()
    end = qkv.shape[1] // (H + 2 * K) * (H + K)
    queries_keys[:, end:] = values[:, :end] = torch.nan
    return queries_keys, values


def dense(qkv: Tensor, queries: np.ndarray, visible_until: np.ndarray, H: int, K: int) -> Tensor:
    T = len(qkv)
    q, k, v = qkv.view(T, H + 2 * K, -1).split([H, K, K], 1)
    k, v = (part.repeat_interleave(H // K, 1) for part in (k, v))
    keys = np.arange(T)
    visible = torch.from_numpy((keys <= queries[:, None]) & (queries[:, None] < visible_until))
    scores = torch.einsum("qhd,khd->hqk", q[queries], k) / q.shape[-1] ** 0.5
    p = scores.masked_fill(~visible, float("-inf")).softmax(-1).nan_to_num()
    return torch.einsum("hqk,khd->qhd", p, v).flatten(1)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize(
    "visible_until",
    [np.array(SMALL, np.int32), make_branches(300, 40, 1, 90), make_branches(290, 30, 8, 70, shared=200, padding=7)],
)
def test_forward_and_backward_equal_the_dense_softmax(visible_until: np.ndarray, stride: int) -> None:
    queries = np.arange(0, len(visible_until), stride)
    qkv, grad = draw_inputs(len(visible_until), len(queries), 4, 2, 8)
    leaf = qkv.clone().requires_grad_()
    expected = dense(leaf, queries, visible_until, 4, 2)
    (expected_grad,) = torch.autograd.grad(expected, leaf, grad)
    plan, wide = make_plan(queries, visible_until, 2), torch.full((len(queries), 40), 7.0, dtype=torch.float64)
    lse = attention_forward(qkv, plan, (4, 2), wide[:, 4:36])
    torch.testing.assert_close(wide[:, 4:36], expected.detach())
    assert (wide[:, :4] == 7).all()
    assert (wide[:, 36:] == 7).all()
    torch.testing.assert_close(attention_backward(grad, qkv, wide[:, 4:36], lse, plan, (4, 2)), expected_grad)
    (queries_keys, values), split = split_values(qkv, 4, 2), torch.empty_like(wide[:, 4:36])
    attention_forward(queries_keys, plan, (4, 2), split, values)
    assert torch.equal(split, wide[:, 4:36])
    split_grad = attention_backward(grad, queries_keys, split, lse, plan, (4, 2), values)
    torch.testing.assert_close(split_grad, expected_grad)
    changed = visible_until.copy()
    changed[0] = 1  # negative control: only the first query sees the first key
    assert (attention_reference(qkv, make_plan(queries, changed, 2), (4, 2)) - expected).abs().max() > 1e-3


def test_a_token_sees_its_ancestors_and_no_others() -> None:
    visible_until, queries = np.array(SMALL, np.int32), np.arange(len(SMALL))
    qkv, _ = draw_inputs(len(visible_until), len(visible_until), 2, 1, 8)
    attended = attention_reference(qkv, make_plan(queries, visible_until, 2), (2, 1))
    seen_by = {0: list(range(12)), 2: [2, 3, 4], 3: [3], 6: [6, 7], 9: [9], 11: [11], 12: [], 13: []}
    for key, expected_queries in seen_by.items():
        changed_qkv = qkv.clone()
        changed_qkv[key, 24:] += 1  # its value heads
        differs = (attention_reference(changed_qkv, make_plan(queries, visible_until, 2), (2, 1)) != attended).any(1)
        assert differs.nonzero().flatten().tolist() == expected_queries
    assert not attended[12:].any()


CASES = [
    (make_branches(140, 17, 64, 139, 1, 3), 6, 2, 128),
    (make_branches(700, 9, 14, 11, 300, 8, shared=113, padding=21), 12, 2, 128),
    (make_branches(130, 60, shared=20, padding=1), 4, 4, 64),
    (make_branches(70, 20, 1), 7, 1, 24),
    (np.array(SMALL, np.int32), 2, 1, 16),
]


@CUDA
@pytest.mark.parametrize("stride", [1, 5])
@pytest.mark.parametrize(("visible_until", "H", "K", "D"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tiles", [None, find_tiles((7, 5))])
def test_the_kernels_equal_the_dense_softmax(
    visible_until: np.ndarray, H: int, K: int, D: int, dtype: torch.dtype, stride: int, tiles: AttentionTiles | None
) -> None:
    """On the same rounded inputs; two runs give the same bits, the second with values of another matrix."""
    queries = np.arange(0, len(visible_until), stride)
    if not visible_until[-1]:  # padding queries, several of one token
        queries = np.concatenate([queries, [len(visible_until) - 1] * 9])
    qkv, grad = draw_inputs(len(visible_until), len(queries), H, K, D, dtype)
    leaf = qkv.double().requires_grad_()
    expected = dense(leaf, queries, visible_until, H, K)
    (expected_grad,) = torch.autograd.grad(expected, leaf, grad.double())
    plan, results = make_plan(queries, visible_until, H // K, "cuda", tiles), []
    for matrix, values in ((qkv.cuda(), None), split_values(qkv.cuda(), H, K)):
        wide = torch.full((len(queries), H * D + 16), 7.0, dtype=dtype, device="cuda")
        out = wide[:, 8:-8]
        lse = attention_forward(matrix, plan, (H, K), out, values)
        assert lse is not None
        dqkv = attention_backward(grad.cuda(), matrix, out, lse, plan, (H, K), values)
        assert (wide[:, :8] == 7).all()
        assert (wide[:, -8:] == 7).all()
        results.append((out.clone(), dqkv))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(results[0][0].double().cpu(), expected.detach(), atol=tolerance, rtol=tolerance)
    largest = expected_grad.abs().max().item()
    torch.testing.assert_close(
        results[0][1].double().cpu(), expected_grad, atol=tolerance * max(1, largest / 4), rtol=tolerance
    )
