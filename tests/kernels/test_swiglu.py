"""SwiGLU and its gradient are autograd's, with and without dropout."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from lorgnette.kernels.dropout import Dropout
from lorgnette.kernels.swiglu import swiglu, swiglu_backward

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SALT = 4


def drawn(T: int, F: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """[gate | up], the gradient of the product (columns of a wider matrix) and of the dropped product."""
    torch.manual_seed(T * F)
    return [tensor.to(dtype) for tensor in (torch.randn(T, 2 * F) * 2, torch.randn(T, F + 3), torch.randn(1, T, F))]


def mask_on(device: str, drop: bool) -> Dropout | None:
    return Dropout(torch.tensor(11, dtype=torch.int32, device=device), 0.4) if drop else None


def passed(gate_up: Tensor, grad: Tensor, dropped_grad: Tensor, mask: Dropout | None) -> list[Tensor]:
    """product (in columns of a wider matrix), product made again, gradient, dropped product if there is one."""
    F = gate_up.shape[1] // 2
    wide, again = torch.zeros_like(grad), torch.zeros_like(grad)
    seen = swiglu(gate_up, wide[:, 1 : 1 + F], None if mask is None else (mask, 1, SALT))
    under = None if mask is None else (dropped_grad, mask, SALT)
    made = swiglu_backward(gate_up, grad[:, 2 : 2 + F], again[:, 1 : 1 + F], under)
    assert made.data_ptr() == gate_up.data_ptr()
    assert (seen is None) == (mask is None)
    return [wide, again, made] + ([] if seen is None else [seen])


@pytest.mark.parametrize("drop", [False, True])
def test_forward_and_backward_are_autograds(drop: bool) -> None:
    (gate_up, grad, dropped_grad), mask = drawn(5, 13), mask_on("cpu", drop)
    leaf = gate_up.clone().requires_grad_()
    wanted = silu(leaf[:, :13]) * leaf[:, 13:]
    under = wanted if mask is None else wanted * mask.build_mask(wanted.detach(), SALT)
    total = (wanted * grad[:, 2:15]).sum()
    (total if mask is None else total + (under * dropped_grad[0]).sum()).backward()
    wide, again, made, *seen = passed(gate_up, grad, dropped_grad, mask)
    torch.testing.assert_close(wide[:, 1:14], wanted.detach())
    torch.testing.assert_close(again[:, 1:14], under.detach())
    torch.testing.assert_close(made, leaf.grad, atol=1e-5, rtol=1e-5)
    for one in seen:
        torch.testing.assert_close(one[0], under.detach())
    assert not wide[:, [0, 14, 15]].any()
    assert not again[:, [0, 14, 15]].any()


@CUDA
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(("T", "F"), [(1, 1), (37, 333), (5, 2051)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_kernel_is_its_reference(drop: bool, T: int, F: int, dtype: torch.dtype, close: float) -> None:
    made = passed(*(tensor.cuda() for tensor in drawn(T, F, dtype)), mask_on("cuda", drop))
    for one, wanted in zip(made, passed(*drawn(T, F, dtype), mask_on("cpu", drop)), strict=True):
        torch.testing.assert_close(one.cpu(), wanted, atol=close, rtol=close)
