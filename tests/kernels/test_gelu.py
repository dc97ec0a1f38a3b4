"""The activation equals transformers' quick_gelu; the kernel equals its reference."""

import pytest
import torch
from transformers.activations import ACT2FN

from lorgnette.kernels.gelu import quick_gelu_

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def test_it_equals_transformers_quick_gelu() -> None:
    x = torch.linspace(-9, 9, 700).view(7, 100)
    expected = ACT2FN["quick_gelu"](x)
    quick_gelu_(x)
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(expected, torch.nn.functional.gelu(torch.linspace(-9, 9, 700).view(7, 100)), atol=1e-3)


@CUDA
@pytest.mark.parametrize("rows", [1, 13, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_equals_its_reference(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(rows, 333) * 4).to(dtype)
    quick_gelu_(on_gpu := x.cuda())
    quick_gelu_(x)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 2**-7}
    torch.testing.assert_close(on_gpu.cpu(), x, **tolerance)
