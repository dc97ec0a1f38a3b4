"""Scaled matrices go to their places, and nothing beside them is touched."""

import pytest
import torch
from torch import Tensor

from lorgnette.kernels.multi_tensor_copy import CopyOp, MultiTensorCopy

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPES = [(3, 5), (1, 1), (67, 129), (8, 16)]


def prepared(device: str, dtype: torch.dtype) -> tuple[MultiTensorCopy, Tensor, list[Tensor]]:
    """Each matrix of SHAPES goes, times 0.5, 1.5, …, to columns of its own wider matrix, from column 2 on."""
    torch.manual_seed(0)
    flat = torch.randn(sum(m * n for m, n in SHAPES) + 3).to(device)
    wide = [torch.full((m, n + 5), 9.0, dtype=dtype, device=device) for m, n in SHAPES]
    moves, begin = [], 3
    for i, (m, n) in enumerate(SHAPES):
        moves.append(CopyOp(flat[begin : begin + m * n].view(m, n), wide[i][:, 2 : 2 + n], i + 0.5))
        begin += m * n
    return MultiTensorCopy(flat, moves), flat, wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_values_go_to_their_columns(dtype: torch.dtype) -> None:
    spread, flat, wide = prepared("cpu", dtype)
    for _ in range(2):  # it is made again and again, of what the flat vector holds by then
        spread()
        parts = flat[3:].split([m * n for m, n in SHAPES])
        for i, ((m, n), part) in enumerate(zip(SHAPES, parts, strict=True)):
            wanted = torch.full((m, n + 5), 9.0, dtype=dtype)
            wanted[:, 2 : 2 + n] = (part.view(m, n) * (i + 0.5)).to(dtype)
            assert torch.equal(wide[i], wanted)
        flat.mul_(-2)


def test_no_moves_are_no_work() -> None:
    MultiTensorCopy(torch.zeros(1), [])()


@CUDA
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_kernel_is_its_reference(dtype: torch.dtype, close: float) -> None:
    results = []
    for device in ("cuda", "cpu"):
        spread, flat, wide = prepared(device, dtype)
        spread()
        flat.mul_(-2)
        spread()
        results.append([tensor.cpu() for tensor in wide])
    torch.testing.assert_close(*results, atol=close, rtol=close)
