"""The gradient of an input through A and dropout is that of autograd on masks that are written out."""

import pytest
import torch
from torch import Tensor
from triton_interpreter import on_a_gpu

from lorgnette.kernels.dropout import Dropout
from lorgnette.kernels.dropped_products import add_dropped_products

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CASES = {"three of 16": (70, 80, 3, 16), "odd sizes": (37, 33, 2, 5), "two blocks of ranks": (33, 70, 1, 72)}
"""T, I, n, rank."""
RNG_STREAM = 5


def draw_inputs(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """[dx | du], A, and keys of all 32 bits."""
    T, width, n, rank = CASES[case]
    torch.manual_seed(0)
    dx_ext, a = torch.randn(T, width + n * rank), torch.randn(n, rank, width) * rank**-0.5
    return dx_ext.to(dtype), a.to(dtype), torch.randint(-(2**31), 2**31 - 1, (T,), dtype=torch.int32)


def run(case: str, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """dx, computed in place, with du behind it."""
    width = CASES[case][1]
    dx_ext, a, keys = (tensor.to(device) for tensor in draw_inputs(case, dtype))
    add_dropped_products(dx_ext[:, :width], dx_ext[:, width:], a, Dropout(keys, 0.3), RNG_STREAM)
    return dx_ext.cpu()


def compute_expected(case: str, dtype: torch.dtype, rng_stream: int = RNG_STREAM) -> Tensor:
    """The same in float32, by autograd of u."""
    T, width, n, _ = CASES[case]
    dx_ext, a, keys = draw_inputs(case, dtype)
    x = torch.randn(T, width, requires_grad=True)
    masks = [Dropout(keys, 0.3).build_mask(x.detach(), rng_stream + i) for i in range(n)]
    u = torch.cat([(x * mask) @ a_i.float().T for mask, a_i in zip(masks, a, strict=True)], 1)
    dx = dx_ext.float()
    dx[:, :width] += torch.autograd.grad(u, x, dx[:, width:])[0]
    return dx


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (actual.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_the_reference_equals_autograd(case: str) -> None:
    actual, other_masks = run(case, torch.float32), compute_expected(case, torch.float32, RNG_STREAM + 1)
    assert_close(actual, compute_expected(case, torch.float32), 1e-5)
    assert (actual - other_masks).abs().max() > 0.1 * actual.abs().max()  # negative control


def interpret() -> None:
    """The kernel on the CPU, in float16."""
    for case in CASES:
        with on_a_gpu():
            actual = run(case, torch.float16)
        assert_close(actual, compute_expected(case, torch.float16), 1e-3)
        assert (actual - compute_expected(case, torch.float16, RNG_STREAM + 1)).abs().max() > 0.1  # negative control


@CUDA
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_the_kernel_equals_autograd(case: str, dtype: torch.dtype, tolerance: float) -> None:
    actual = run(case, dtype, "cuda")
    assert_close(actual, compute_expected(case, dtype), tolerance)
    assert torch.equal(actual, run(case, dtype, "cuda"))
