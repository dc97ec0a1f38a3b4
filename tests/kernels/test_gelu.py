"""The activations equal transformers'; the kernels equal their references."""

import pytest
import torch
from tolerances import HALF_TOLERANCES
from transformers.activations import ACT2FN

from lorgnette.kernels.gelu import linear_gelu_tanh, quick_gelu_

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def test_it_equals_transformers_quick_gelu() -> None:
    x = torch.linspace(-9, 9, 700).view(7, 100)
    expected = ACT2FN["quick_gelu"](x)
    quick_gelu_(x)
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(expected, torch.nn.functional.gelu(torch.linspace(-9, 9, 700).view(7, 100)), atol=1e-3)


@CUDA
@pytest.mark.parametrize("rows", [1, 13, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_equals_its_reference(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(rows, 333) * 4).to(dtype)
    quick_gelu_(on_gpu := x.cuda())
    quick_gelu_(x)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else HALF_TOLERANCES[dtype]
    torch.testing.assert_close(on_gpu.cpu(), x, **tolerance)


def draw_linear(rows: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = ((rows, 48), (72, 48), (72,))
    return [(torch.randn(shape) * scale).to(dtype) for shape, scale in zip(shapes, (1, 0.3, 1), strict=True)]


def test_a_linear_layer_with_the_tanh_form_equals_transformers() -> None:
    inputs = draw_linear(7)
    product = torch.nn.functional.linear(*inputs)
    torch.testing.assert_close(linear_gelu_tanh(*inputs), ACT2FN["gelu_pytorch_tanh"](product), atol=1e-6, rtol=0)
    assert not torch.allclose(linear_gelu_tanh(*inputs), ACT2FN["gelu"](product), atol=1e-5)


@CUDA
@pytest.mark.parametrize("rows", [1, 13, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fused_tanh_form_equals_its_reference(rows: int, dtype: torch.dtype) -> None:
    inputs = draw_linear(rows, dtype)
    on_gpu = linear_gelu_tanh(*(part.cuda() for part in inputs)).float().cpu()
    expected = linear_gelu_tanh(*(part.float() for part in inputs))
    # The hardware's tanh has 11 bits.
    tolerance = {"atol": 2e-3, "rtol": 2e-3} if dtype == torch.float32 else HALF_TOLERANCES[dtype]
    torch.testing.assert_close(on_gpu, expected, **tolerance)
    assert not torch.allclose(on_gpu, ACT2FN["quick_gelu"](torch.nn.functional.linear(*(p.float() for p in inputs))))
