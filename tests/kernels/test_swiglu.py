"""SwiGLU and its gradient equal autograd's, with and without dropout."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from lorgnette.kernels.dropout import Dropout
from lorgnette.kernels.swiglu import swiglu, swiglu_backward

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
RNG_STREAM = 4


def draw_inputs(T: int, F: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """[gate | up], the gradient of the product (columns of a wider matrix) and of the dropped product."""
    torch.manual_seed(T * F)
    return [tensor.to(dtype) for tensor in (torch.randn(T, 2 * F) * 2, torch.randn(T, F + 3), torch.randn(1, T, F))]


def make_dropout(T: int, device: str, use_dropout: bool) -> Dropout | None:
    return Dropout(torch.arange(11, 11 + T, dtype=torch.int32, device=device), 0.4) if use_dropout else None


def run(gate_up: Tensor, grad: Tensor, dropped_grad: Tensor, dropout: Dropout | None) -> list[Tensor]:
    """Product (in columns of a wider matrix), recomputed product, gradient, dropped product if there is one."""
    F = gate_up.shape[1] // 2
    product, recomputed = torch.zeros_like(grad), torch.zeros_like(grad)
    dropped = swiglu(gate_up, product[:, 1 : 1 + F], None if dropout is None else (dropout, 1, RNG_STREAM))
    masked = None if dropout is None else (dropped_grad, dropout, RNG_STREAM)
    dgate_up = swiglu_backward(gate_up, grad[:, 2 : 2 + F], recomputed[:, 1 : 1 + F], masked)
    assert dgate_up.data_ptr() == gate_up.data_ptr()
    assert (dropped is None) == (dropout is None)
    return [product, recomputed, dgate_up] + ([] if dropped is None else [dropped])


@pytest.mark.parametrize("use_dropout", [False, True])
def test_forward_and_backward_equal_autograd(use_dropout: bool) -> None:
    (gate_up, grad, dropped_grad), dropout = draw_inputs(5, 13), make_dropout(5, "cpu", use_dropout)
    leaf = gate_up.clone().requires_grad_()
    expected = silu(leaf[:, :13]) * leaf[:, 13:]
    masked = expected if dropout is None else expected * dropout.build_mask(expected.detach(), RNG_STREAM)
    total = (expected * grad[:, 2:15]).sum()
    (total if dropout is None else total + (masked * dropped_grad[0]).sum()).backward()
    product, recomputed, dgate_up, *dropped = run(gate_up, grad, dropped_grad, dropout)
    torch.testing.assert_close(product[:, 1:14], expected.detach())
    torch.testing.assert_close(recomputed[:, 1:14], masked.detach())
    torch.testing.assert_close(dgate_up, leaf.grad, atol=1e-5, rtol=1e-5)
    for actual in dropped:
        torch.testing.assert_close(actual[0], masked.detach())
    assert not product[:, [0, 14, 15]].any()
    assert not recomputed[:, [0, 14, 15]].any()


@CUDA
@pytest.mark.parametrize("use_dropout", [False, True])
@pytest.mark.parametrize(("T", "F"), [(1, 1), (37, 333), (5, 2051)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_the_kernel_equals_its_reference(
    use_dropout: bool, T: int, F: int, dtype: torch.dtype, tolerance: float
) -> None:
    dgate_up = run(*(tensor.cuda() for tensor in draw_inputs(T, F, dtype)), make_dropout(T, "cuda", use_dropout))
    for actual, expected in zip(
        dgate_up, run(*draw_inputs(T, F, dtype), make_dropout(T, "cpu", use_dropout)), strict=True
    ):
        torch.testing.assert_close(actual.cpu(), expected, atol=tolerance, rtol=tolerance)
