"""SwiGLU and its gradient are autograd's, with and without dropout."""

from typing import Literal, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from lorgnette.model.kernels.dropout import Mask
from lorgnette.model.kernels.product import Product
from lorgnette.model.kernels.swiglu import swiglu, swiglu_backward

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SALT, RANK = 4, 8
How = Literal["alone", "with an adapter", "dropped"]
WAYS = get_args(How)


def drawn(T: int, F: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """[gate | up], the gradient of the product and RANK columns of another beside it, and the factor of those."""
    torch.manual_seed(T * F)
    made = (torch.randn(T, 2 * F) * 2, torch.randn(T, F + 3 + RANK), torch.randn(1, RANK, F))
    return [tensor.to(dtype) for tensor in made]


def mask_on(device: str, how: How) -> Mask | None:
    return Mask(torch.tensor(11, dtype=torch.int32, device=device), 0.4) if how == "dropped" else None


def passed(gate_up: Tensor, grad: Tensor, a: Tensor, how: How) -> list[Tensor]:
    """product (in columns of a wider matrix), product made again, gradient, dropped product if there is one."""
    F, mask = gate_up.shape[1] // 2, mask_on(gate_up.device.type, how)
    wide, again = torch.zeros_like(grad), torch.zeros_like(grad)
    seen = swiglu(gate_up, wide[:, 1 : 1 + F], mask, SALT)
    added = None if how == "alone" else Product(grad[None, :, F + 3 :], a, mask, SALT)
    made = swiglu_backward(gate_up, grad[:, 2 : 2 + F], again[:, 1 : 1 + F], added)
    assert made.data_ptr() == gate_up.data_ptr()
    assert (seen is None) == (mask is None)
    return [wide, again, made] + ([] if seen is None else [seen])


@pytest.mark.parametrize("how", WAYS)
def test_forward_and_backward_are_autograds(how: How) -> None:
    (gate_up, grad, a), mask = drawn(5, 13), mask_on("cpu", how)
    leaf = gate_up.clone().requires_grad_()
    wanted = silu(leaf[:, :13]) * leaf[:, 13:]
    under = wanted if mask is None else wanted * mask.of(wanted.detach(), SALT)
    total = (wanted * grad[:, 2:15]).sum()
    (total if how == "alone" else total + (under @ a[0].T * grad[:, 16:]).sum()).backward()
    wide, again, made, *seen = passed(gate_up, grad, a, how)
    torch.testing.assert_close(wide[:, 1:14], wanted.detach())
    torch.testing.assert_close(again[:, 1:14], under.detach())
    torch.testing.assert_close(made, leaf.grad, atol=1e-5, rtol=1e-5)
    for one in seen:
        torch.testing.assert_close(one[0], under.detach())
    assert not wide[:, 14:].any()
    assert not again[:, 14:].any()


@CUDA
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("T", "F"), [(1, 1), (37, 333), (5, 2051), (200, 256)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_kernel_is_its_reference(how: How, T: int, F: int, dtype: torch.dtype, close: float) -> None:
    made = passed(*(tensor.cuda() for tensor in drawn(T, F, dtype)), how)
    for one, wanted in zip(made, passed(*drawn(T, F, dtype), how), strict=True):
        assert (one.cpu() - wanted).abs().max() <= close * wanted.abs().max()
