"""Residual addition and RMSNorm equal torch's, and so does their gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from lorgnette.kernels.dropout import Dropout, apply_dropout
from lorgnette.kernels.rms_norm import add_rms_norm, rms_norm_backward

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
EPS = 1e-6


def draw_inputs(T: int, C: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, delta, weight, the gradient of xn (columns of a wider matrix), the gradient past the norm."""
    torch.manual_seed(T * C)
    tensors = [torch.randn(T, C), torch.randn(T, C), torch.rand(C) + 0.5, torch.randn(T, C + 5), torch.randn(T, C)]
    return [tensor.to(dtype) for tensor in tensors]


@pytest.mark.parametrize(("T", "C"), [(1, 3), (7, 33)])
@pytest.mark.parametrize("added", [True, False])
def test_forward_and_backward_equal_autograd(T: int, C: int, added: bool) -> None:
    x, delta, weight, grad, residual = draw_inputs(T, C)
    leaf = (x + delta if added else x.clone()).requires_grad_()
    expected = rms_norm(leaf, (C,), weight, EPS)
    ((expected * grad[:, 2 : 2 + C]).sum() + (leaf * residual).sum()).backward()
    wide = torch.zeros(T, C + 4)
    summed, rstd, dropped = add_rms_norm(x, delta if added else None, weight, EPS, wide[:, 3 : 3 + C])
    assert dropped is None
    torch.testing.assert_close(summed, leaf.detach())
    torch.testing.assert_close(wide[:, 3 : 3 + C], expected.detach(), atol=1e-5, rtol=1e-5)
    assert not wide[:, :3].any()
    assert not wide[:, 3 + C :].any()
    residual_before = residual.clone()
    dx, normed = rms_norm_backward(grad[:, 2 : 2 + C], summed, rstd, weight, residual)
    assert torch.equal(normed, wide[:, 3 : 3 + C])
    assert torch.equal(residual, residual_before)  # other kernels still read it
    torch.testing.assert_close(dx, leaf.grad, atol=1e-5, rtol=1e-5)
    dx_without_residual, _ = rms_norm_backward(grad[:, 2 : 2 + C], summed, rstd, weight)
    torch.testing.assert_close(dx_without_residual, dx - residual, atol=1e-5, rtol=1e-5)


def run(x: Tensor, delta: Tensor, weight: Tensor, grad: Tensor, residual: Tensor) -> list[Tensor]:
    C = x.shape[1]
    wide = torch.zeros_like(grad)
    out = wide[:, 1 : 1 + C]
    dropout = Dropout(torch.arange(77, 77 + len(x), dtype=torch.int32, device=x.device), 0.3)
    summed, rstd, dropped = add_rms_norm(x, delta, weight, EPS, out, (dropout, 3, 5))
    assert dropped is not None
    assert torch.equal(dropped, apply_dropout(out, 3, dropout, 5))
    assert not torch.equal(dropped[0], dropped[1])
    _, plain_rstd, no_dropped = add_rms_norm(x, None, weight, EPS, torch.empty_like(x))
    assert no_dropped is None
    grad_before = grad.clone()
    dx, normed = rms_norm_backward(grad[:, 2 : 2 + C], summed, rstd, weight, residual)
    assert torch.equal(normed, out)
    dx_without_residual, _ = rms_norm_backward(grad[:, 2 : 2 + C], summed, rstd, weight)
    assert torch.equal(grad, grad_before)
    return [summed, rstd, plain_rstd, wide, dx, dx_without_residual]


def test_the_norm_applies_dropout_as_apply_dropout_does() -> None:
    run(*draw_inputs(7, 33))


@CUDA
@pytest.mark.parametrize(("T", "C"), [(1, 33), (37, 333), (5, 3584)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_the_kernel_equals_its_reference(T: int, C: int, dtype: torch.dtype, tolerance: float) -> None:
    results = run(*(tensor.cuda() for tensor in draw_inputs(T, C, dtype)))
    for actual, expected in zip(results, run(*draw_inputs(T, C, dtype)), strict=True):
        torch.testing.assert_close(actual.cpu(), expected, atol=tolerance, rtol=tolerance)
