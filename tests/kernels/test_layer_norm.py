"""The deferred bias is added before the norm; the kernel equals its reference."""

import pytest
import torch
from torch.nn.functional import layer_norm as torch_layer_norm

from lorgnette.kernels.layer_norm import layer_norm

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def draw_inputs(rows: int, width: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x, deferred_bias = torch.randn(rows, width) * 3, torch.randn(width)
    weight, bias = torch.randn(width), torch.randn(width)
    return x.to(device, dtype), deferred_bias.to(device), weight.to(device, dtype), bias.to(device, dtype)


def test_the_deferred_bias_is_added_first() -> None:
    x, deferred_bias, weight, bias = draw_inputs(5, 48, torch.float32, "cpu")
    normed = layer_norm(x, deferred_bias, weight, bias, 1e-6)
    torch.testing.assert_close(
        normed, torch_layer_norm(x + deferred_bias, (48,), weight, bias, 1e-6), atol=1e-6, rtol=0
    )
    assert not torch.allclose(normed, torch_layer_norm(x, (48,), weight, bias, 1e-6), atol=1e-2)


@CUDA
@pytest.mark.parametrize("width", [32, 192, 1280])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_equals_its_reference(width: int, dtype: torch.dtype) -> None:
    inputs = draw_inputs(1001, width, dtype, "cuda")
    before = inputs[0].clone()
    normed = layer_norm(*inputs, 1e-6)
    expected = layer_norm(*(part.cpu() for part in inputs), 1e-6)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 2**-7}
    torch.testing.assert_close(normed.cpu(), expected, **tolerance)
    assert torch.equal(inputs[0], before)
