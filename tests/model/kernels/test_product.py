"""What an adapter adds to its input's gradient is autograd's, under the masks of the forward."""

import pytest
import torch
from torch import Tensor

from lorgnette.model.kernels.dropout import Mask, dropped
from lorgnette.model.kernels.product import Product, add_product

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SALT, COUNT = 6, 3


def drawn(T: int, C: int, r: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Where it is added, u side by side behind other columns, a."""
    torch.manual_seed(T * C + r)
    return [t.to(dtype) for t in (torch.randn(T, C + 8), torch.randn(T, 5 + COUNT * r), torch.randn(COUNT, r, C))]


def mask_on(device: str, drop: bool) -> Mask | None:
    return Mask(torch.tensor(-11, dtype=torch.int32, device=device), 0.4) if drop else None


def product(wide: Tensor, a: Tensor, mask: Mask | None) -> Product:
    r = a.shape[1]
    return Product(wide[:, 5:].view(len(wide), COUNT, r).transpose(0, 1), a, mask, SALT)


@pytest.mark.parametrize("drop", [False, True])
def test_it_is_the_gradient_by_the_input(drop: bool) -> None:
    (out, wide, a), mask = drawn(9, 13, 4), mask_on("cpu", drop)
    x = torch.randn(9, 13, requires_grad=True)
    seen = x.expand(COUNT, -1, -1) if mask is None else dropped(x, COUNT, mask, SALT)
    us = torch.bmm(seen, a.mT)
    (us * product(wide, a, mask).u).sum().backward()
    wanted = out.clone()
    wanted[:, 3:16] += x.grad
    add_product(out[:, 3:16], product(wide, a, mask))
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    otherwise = product(wide, a, mask_on("cpu", not drop)).made()
    assert (otherwise - x.grad).abs().max() > 0.1  # the comparison can fail


@CUDA
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(("T", "C", "r"), [(1, 1, 1), (37, 333, 8), (130, 1536, 64), (70, 129, 130)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_kernel_is_its_reference(drop: bool, T: int, C: int, r: int, dtype: torch.dtype, close: float) -> None:
    out, wide, a = drawn(T, C, r, dtype)
    moved = out.cuda()
    add_product(moved[:, 5 : 5 + C], product(wide.cuda(), a.cuda(), mask_on("cuda", drop)))
    add_product(out[:, 5 : 5 + C], product(wide, a, mask_on("cpu", drop)))
    assert (moved.cpu() - out).abs().max() <= close * out.abs().max()
