"""Residual addition and RMS norm are torch's, and so is their gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from lorgnette.kernels.dropout import Dropout, apply_dropout
from lorgnette.kernels.rms_norm import add_rms_norm, rms_norm_backward

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
EPS = 1e-6


def drawn(T: int, C: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, delta, weight, the gradient of xn (columns of a wider matrix), the gradient past the norm."""
    torch.manual_seed(T * C)
    made = [torch.randn(T, C), torch.randn(T, C), torch.rand(C) + 0.5, torch.randn(T, C + 5), torch.randn(T, C)]
    return [tensor.to(dtype) for tensor in made]


@pytest.mark.parametrize(("T", "C"), [(1, 3), (7, 33)])
@pytest.mark.parametrize("added", [True, False])
def test_forward_and_backward_are_autograds(T: int, C: int, added: bool) -> None:
    x, delta, weight, grad, residual = drawn(T, C)
    leaf = (x + delta if added else x.clone()).requires_grad_()
    wanted = rms_norm(leaf, (C,), weight, EPS)
    ((wanted * grad[:, 2 : 2 + C]).sum() + (leaf * residual).sum()).backward()
    wide = torch.zeros(T, C + 4)
    summed, scale, seen = add_rms_norm(x, delta if added else None, weight, EPS, wide[:, 3 : 3 + C])
    assert seen is None
    torch.testing.assert_close(summed, leaf.detach())
    torch.testing.assert_close(wide[:, 3 : 3 + C], wanted.detach(), atol=1e-5, rtol=1e-5)
    assert not wide[:, :3].any()
    assert not wide[:, 3 + C :].any()
    past = residual.clone()
    made, again = rms_norm_backward(grad[:, 2 : 2 + C], summed, scale, weight, residual)
    assert torch.equal(again, wide[:, 3 : 3 + C])
    assert torch.equal(residual, past)  # it is read by others meanwhile
    torch.testing.assert_close(made, leaf.grad, atol=1e-5, rtol=1e-5)
    alone, _ = rms_norm_backward(grad[:, 2 : 2 + C], summed, scale, weight)
    torch.testing.assert_close(alone, made - residual, atol=1e-5, rtol=1e-5)


def passed(x: Tensor, delta: Tensor, weight: Tensor, grad: Tensor, residual: Tensor) -> list[Tensor]:
    C = x.shape[1]
    wide = torch.zeros_like(grad)
    out = wide[:, 1 : 1 + C]
    mask = Dropout(torch.tensor(77, dtype=torch.int32, device=x.device), 0.3)
    summed, scale, seen = add_rms_norm(x, delta, weight, EPS, out, (mask, 3, 5))
    assert seen is not None
    assert torch.equal(seen, apply_dropout(out, 3, mask, 5))
    assert not torch.equal(seen[0], seen[1])
    _, plain, none = add_rms_norm(x, None, weight, EPS, torch.empty_like(x))
    assert none is None
    made, again = rms_norm_backward(grad[:, 2 : 2 + C], summed, scale, weight, residual)
    assert torch.equal(again, out)
    alone, _ = rms_norm_backward(grad[:, 2 : 2 + C], summed, scale, weight)
    past = grad.clone()
    under, _ = rms_norm_backward(grad[:, 2 : 2 + C], summed, scale, weight, residual, (seen, mask, 5))
    assert torch.equal(grad, past)
    return [summed, scale, plain, wide, made, alone, under]


def test_what_is_dropped_is_what_dropped_drops() -> None:
    passed(*drawn(7, 33))


def test_what_was_dropped_joins_the_gradient() -> None:
    x, _, weight, grad, residual = drawn(7, 33)
    mask, more = Dropout(torch.tensor(77, dtype=torch.int32), 0.3), torch.randn(3, 7, 33)
    joined = grad[:, :33] + sum(part * mask.build_mask(part, 5 + i) for i, part in enumerate(more))
    _, scale, _ = add_rms_norm(x, None, weight, EPS, torch.empty_like(x))
    found, _ = rms_norm_backward(grad[:, :33], x, scale, weight, residual, (more, mask, 5))
    torch.testing.assert_close(found, rms_norm_backward(joined, x, scale, weight, residual)[0], atol=1e-5, rtol=1e-5)
    other, _ = rms_norm_backward(grad[:, :33], x, scale, weight, residual, (more, mask, 6))
    assert (found - other).abs().max() > 0.1  # masks of another projection are others


@CUDA
@pytest.mark.parametrize(("T", "C"), [(1, 33), (37, 333), (5, 3584)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_kernel_is_its_reference(T: int, C: int, dtype: torch.dtype, close: float) -> None:
    made = passed(*(tensor.cuda() for tensor in drawn(T, C, dtype)))
    for one, wanted in zip(made, passed(*drawn(T, C, dtype)), strict=True):
        torch.testing.assert_close(one.cpu(), wanted, atol=close, rtol=close)
