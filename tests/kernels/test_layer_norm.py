"""LayerNorm with a shift is LayerNorm of the shifted row; the kernel is its reference."""

import pytest
import torch
from torch.nn.functional import layer_norm as plain

from lorgnette.kernels.layer_norm import layer_norm, layer_norm_reference

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def drawn(rows: int, width: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x, shift = torch.randn(rows, width) * 3, torch.randn(width)
    weight, bias = torch.randn(width), torch.randn(width)
    return x.to(device, dtype), shift.to(device), weight.to(device, dtype), bias.to(device, dtype)


def test_the_shift_is_added_first() -> None:
    x, shift, weight, bias = drawn(5, 48, torch.float32, "cpu")
    made = layer_norm(x, shift, weight, bias, 1e-6)
    torch.testing.assert_close(made, plain(x + shift, (48,), weight, bias, 1e-6), atol=1e-6, rtol=0)
    assert not torch.allclose(made, plain(x, (48,), weight, bias, 1e-6), atol=1e-2)


@CUDA
@pytest.mark.parametrize("width", [32, 192, 1280])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_its_reference(width: int, dtype: torch.dtype) -> None:
    given = drawn(1001, width, dtype, "cuda")
    before = given[0].clone()
    made = layer_norm(*given, 1e-6)
    wanted = layer_norm_reference(*(part.cpu() for part in given), 1e-6)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 2**-7}
    torch.testing.assert_close(made.cpu(), wanted, **close)
    assert torch.equal(given[0], before)
