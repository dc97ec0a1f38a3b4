"""Scaled matrices are copied to their destinations, and the columns beside them stay unchanged."""

import pytest
import torch
from torch import Tensor

from lorgnette.kernels.multi_tensor_copy import CopyOp, MultiTensorCopy

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPES = [(3, 5), (1, 1), (67, 129), (8, 16)]


def prepare(device: str, dtype: torch.dtype) -> tuple[MultiTensorCopy, Tensor, list[Tensor]]:
    """Each matrix of SHAPES is copied, times 0.5, 1.5, …, into a wider matrix, from column 2 on."""
    torch.manual_seed(0)
    flat = torch.randn(sum(m * n for m, n in SHAPES) + 3).to(device)
    wide = [torch.full((m, n + 5), 9.0, dtype=dtype, device=device) for m, n in SHAPES]
    ops, start = [], 3
    for i, (m, n) in enumerate(SHAPES):
        ops.append(CopyOp(flat[start : start + m * n].view(m, n), wide[i][:, 2 : 2 + n], i + 0.5))
        start += m * n
    return MultiTensorCopy(flat, ops), flat, wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scaled_values_are_copied_to_their_columns(dtype: torch.dtype) -> None:
    copy, flat, wide = prepare("cpu", dtype)
    for _ in range(2):  # every call copies the current values
        copy()
        parts = flat[3:].split([m * n for m, n in SHAPES])
        for i, ((m, n), part) in enumerate(zip(SHAPES, parts, strict=True)):
            expected = torch.full((m, n + 5), 9.0, dtype=dtype)
            expected[:, 2 : 2 + n] = (part.view(m, n) * (i + 0.5)).to(dtype)
            assert torch.equal(wide[i], expected)
        flat.mul_(-2)


def test_an_empty_list_does_nothing() -> None:
    MultiTensorCopy(torch.zeros(1), [])()


@CUDA
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_the_kernel_equals_its_reference(dtype: torch.dtype, tolerance: float) -> None:
    results = []
    for device in ("cuda", "cpu"):
        copy, flat, wide = prepare(device, dtype)
        copy()
        flat.mul_(-2)
        copy()
        results.append([tensor.cpu() for tensor in wide])
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)
