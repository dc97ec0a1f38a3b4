"""SwiGLU, its product with A under dropout, and the gradient of both equal autograd's."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from triton_interpreter import on_a_gpu

from lorgnette.kernels.dropout import Dropout
from lorgnette.kernels.swiglu import swiglu, swiglu_backward, swiglu_project

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CASES = {"odd sizes": (37, 333, 5), "aligned": (70, 512, 16), "two blocks of ranks": (33, 80, 72), "one": (1, 1, 1)}
"""T, F, rank."""
RNG_STREAM = 4


def draw_inputs(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[gate | up], A, the gradient of the product (columns of a wider matrix), and of u."""
    T, F, rank = CASES[case]
    torch.manual_seed(T * F)
    sizes = (T, 2 * F), (1, rank, F), (T, F + 3), (T, rank)
    gate_up, a, grad, du = (torch.randn(size).to(dtype) for size in sizes)
    return gate_up * 2, a * F**-0.5, grad, du


def make_dropout(T: int, device: str) -> Dropout:
    return Dropout(torch.arange(11, 11 + T, dtype=torch.int32, device=device), 0.4)


def run(case: str, dtype: torch.dtype, use_dropout: bool, device: str = "cpu") -> list[Tensor]:
    """Product and u (in columns of wider matrices), u's copy, recomputed product, gradient."""
    T, F, rank = CASES[case]
    gate_up, a, grad, du = (tensor.to(device) for tensor in draw_inputs(case, dtype))
    product, recomputed, u = torch.zeros_like(grad), torch.zeros_like(grad), grad.new_zeros(T, rank + 3)
    copy, dropped = grad.new_zeros(T, rank), None
    if use_dropout:
        dropout = make_dropout(T, device)
        swiglu_project(gate_up, product[:, 1 : 1 + F], a, dropout, RNG_STREAM, u[:, 2 : 2 + rank], copy)
        dropped = torch.bmm(du[None], a), dropout, RNG_STREAM
    else:
        swiglu(gate_up, product[:, 1 : 1 + F])
    dgate_up = swiglu_backward(gate_up, grad[:, 2 : 2 + F], recomputed[:, 1 : 1 + F], dropped)
    assert dgate_up.data_ptr() == gate_up.data_ptr()
    return [tensor.cpu() for tensor in (product, u, copy, recomputed, dgate_up)]


def compute_expected(case: str, dtype: torch.dtype, use_dropout: bool, rng_stream: int = RNG_STREAM) -> list[Tensor]:
    """The same in float32, by autograd."""
    T, F, rank = CASES[case]
    gate_up, a, grad, du = (tensor.float() for tensor in draw_inputs(case, dtype))
    leaf = gate_up.requires_grad_()
    value = silu(leaf[:, :F]) * leaf[:, F:]
    masked = value * make_dropout(T, "cpu").build_mask(value.detach(), rng_stream) if use_dropout else value
    u = masked @ a[0].T * use_dropout
    ((value * grad[:, 2 : 2 + F]).sum() + (u * du).sum()).backward()
    product, recomputed, wide_u = torch.zeros_like(grad), torch.zeros_like(grad), torch.zeros(T, rank + 3)
    product[:, 1 : 1 + F], recomputed[:, 1 : 1 + F], wide_u[:, 2 : 2 + rank] = (
        value.detach(),
        masked.detach(),
        u.detach(),
    )
    assert leaf.grad is not None
    return [product, wide_u, u.detach(), recomputed, leaf.grad]


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a.float() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("use_dropout", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward_equal_autograd(case: str, use_dropout: bool) -> None:
    actual = run(case, torch.float32, use_dropout)
    assert_close(actual, compute_expected(case, torch.float32, use_dropout), 1e-5)
    if use_dropout and case != "one":  # negative control: the masks of another projection
        for a, b in zip(actual[1:], compute_expected(case, torch.float32, True, RNG_STREAM + 1)[1:], strict=True):
            assert (a - b).abs().max() > 0.05 * b.abs().max()


def interpret() -> None:
    """The kernels on the CPU, in float16."""
    for case in CASES:
        for use_dropout in (False, True):
            with on_a_gpu():
                actual = run(case, torch.float16, use_dropout)
            assert_close(actual, compute_expected(case, torch.float16, use_dropout), 3e-3)


@CUDA
@pytest.mark.parametrize("use_dropout", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_the_kernels_equal_autograd(case: str, dtype: torch.dtype, tolerance: float, use_dropout: bool) -> None:
    actual = run(case, dtype, use_dropout, "cuda")
    assert_close(actual, compute_expected(case, dtype, use_dropout), tolerance)
    assert all(map(torch.equal, actual, run(case, dtype, use_dropout, "cuda")))
