"""The kernel's product equals the library's, for any sizes, and leaves its counters as they were."""

import pytest
import torch

from lorgnette.kernels.adapter_input import allocate_counters, compute_adapter_input

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
SIZES = [(1, 1536, 192, 64), (8, 8960, 64, 64), (32, 1536, 768, 256), (5, 100, 21, 7), (17, 1000, 9, 3), (33, 64, 6, 3)]
"""Tokens, inputs, columns, ranks of a projection."""


def draw_inputs(T: int, C: int, R: int, r: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x and out are columns of wider matrices; the mask leaves out half of the ranks."""
    torch.manual_seed(0)
    x_ext, a, mask = torch.randn(T, C + R + 3), torch.randn(R, C) * C**-0.5, torch.rand(T, r) < 0.5
    return x_ext.to(dtype), a.to(dtype), mask.to(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_masked_product(size: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> None:
    """Also with one mask for all tokens, and none."""
    T, C, R, r = size
    x_ext, a, mask = (tensor.to(device) for tensor in draw_inputs(*size, dtype))
    counters = allocate_counters(R, a.device)
    product = x_ext[:, :C].double() @ a.double().T
    tolerance = (
        {"atol": 2e-6, "rtol": 2e-6} if dtype == torch.float32 else {"atol": 1e-5, "rtol": torch.finfo(dtype).eps}
    )
    for used, wide in ((mask, mask), (mask[:1], mask[:1].expand(T, r)), (None, torch.ones_like(mask))):
        before = x_ext.clone()
        compute_adapter_input(x_ext[:, :C], a, used, counters, x_ext[:, C : C + R])
        expected = product * wide.double().repeat(1, R // r)
        torch.testing.assert_close(x_ext[:, C : C + R].double(), expected, **tolerance)
        assert not torch.allclose(expected, product * mask.double().roll(1, 1).repeat(1, R // r), atol=0.01)
        assert torch.equal(x_ext[:, :C], before[:, :C])
        assert torch.equal(x_ext[:, C + R :], before[:, C + R :])
        assert (counters == 0).all()


@CUDA
def test_the_sum_does_not_depend_on_which_program_is_last() -> None:
    x_ext, a, _ = (tensor.cuda() for tensor in draw_inputs(8, 8960, 64, 64, torch.bfloat16))
    counters, results = allocate_counters(64, a.device), []
    for _ in range(200):
        out = torch.full((8, 64), float("nan"), dtype=torch.bfloat16, device="cuda")
        compute_adapter_input(x_ext[:, :8960], a, None, counters, out)
        results.append(out)
    assert all(torch.equal(out, results[0]) for out in results)
