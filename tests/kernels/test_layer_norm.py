"""The deferred bias is added before the norm; the kernels equal their references."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tolerances import HALF_TOLERANCES
from torch import Tensor
from torch.nn import functional

from lorgnette.kernels.layer_norm import layer_norm, rms_norm

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
EPS = 1e-6


class Inputs(NamedTuple):
    x: Tensor
    deferred_bias: Tensor
    weight: Tensor
    bias: Tensor


def draw_inputs(rows: int, width: int, dtype: torch.dtype = torch.float32) -> Inputs:
    torch.manual_seed(0)
    x, deferred_bias = torch.randn(rows, width) * 3, torch.randn(width)
    weight, bias = torch.randn(width), torch.randn(width)
    return Inputs(x.to(dtype), deferred_bias, weight.to(dtype), bias.to(dtype))


def run_layer_norm(inputs: Inputs) -> Tensor:
    return layer_norm(*inputs, EPS)


def run_rms_norm(inputs: Inputs) -> Tensor:
    return rms_norm(inputs.x, inputs.deferred_bias, inputs.weight, EPS)


def run_torch_layer_norm(x: Tensor, inputs: Inputs) -> Tensor:
    return functional.layer_norm(x, x.shape[1:], inputs.weight, inputs.bias, EPS)


def run_torch_rms_norm(x: Tensor, inputs: Inputs) -> Tensor:
    return functional.rms_norm(x, x.shape[1:], inputs.weight, EPS)


@pytest.mark.parametrize(
    ("run", "expect"), [(run_layer_norm, run_torch_layer_norm), (run_rms_norm, run_torch_rms_norm)]
)
def test_the_deferred_bias_is_added_first(
    run: Callable[[Inputs], Tensor], expect: Callable[[Tensor, Inputs], Tensor]
) -> None:
    inputs = draw_inputs(5, 48)
    torch.testing.assert_close(run(inputs), expect(inputs.x + inputs.deferred_bias, inputs), atol=1e-6, rtol=0)
    assert not torch.allclose(run(inputs), expect(inputs.x, inputs), atol=1e-2)


@CUDA
@pytest.mark.parametrize("run", [run_layer_norm, run_rms_norm])
@pytest.mark.parametrize("width", [32, 192, 1152, 1280, 4608])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_equals_its_reference(run: Callable[[Inputs], Tensor], width: int, dtype: torch.dtype) -> None:
    inputs = draw_inputs(1001, width, dtype)
    on_gpu = Inputs(*(part.cuda() for part in inputs))
    normed = run(on_gpu)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else HALF_TOLERANCES[dtype]
    torch.testing.assert_close(normed.cpu(), run(inputs), **tolerance)
    assert torch.equal(on_gpu.x.cpu(), inputs.x)
