"""The gradient of a gather: rows gathered never, once and often."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from lorgnette.kernels.gather_sum import GatherSegments, build_segments, gather_sum

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROWS = np.array([4, 1, 1, 6, 1, 0, 6, 1], dtype=np.int32)


def copies(rows: np.ndarray, count: int, device: str = "cpu") -> GatherSegments:
    return GatherSegments(*(torch.from_numpy(part).to(device) for part in build_segments(rows, count)))


def test_copies_say_where_rows_went() -> None:
    places, starts = build_segments(ROWS, 8)
    went = [places[a:b].tolist() for a, b in pairwise(starts)]
    assert went == [[5], [1, 2, 4, 7], [], [], [0], [], [3, 6], []]


def test_it_is_the_gradient_of_a_gather() -> None:
    torch.manual_seed(0)
    grad, x = torch.randn(len(ROWS), 5), torch.randn(8, 5, requires_grad=True)
    (x[torch.from_numpy(ROWS).long()] * grad).sum().backward()
    wide = torch.full((8, 9), 3.0)
    made = gather_sum(grad, copies(ROWS, 8), wide[:, 2:7])
    torch.testing.assert_close(made, x.grad)
    torch.testing.assert_close(made, torch.zeros(8, 5).index_add_(0, torch.from_numpy(ROWS), grad))
    assert not made[[2, 3, 5, 7]].any()
    assert made.data_ptr() == wide[:, 2:7].data_ptr()
    assert (wide[:, :2] == 3).all()
    assert (wide[:, 7:] == 3).all()


@CUDA
@pytest.mark.parametrize(("N", "T", "C"), [(1, 1, 1), (201, 37, 333), (50, 77, 1027)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_kernel_is_its_reference(N: int, T: int, C: int, dtype: torch.dtype, close: float) -> None:
    torch.manual_seed(N)
    rows = np.random.default_rng(N).integers(0, T, N).astype(np.int32)
    copied, out = torch.randn(N, C + 3).to(dtype)[:, :C], torch.zeros(T, C + 7).to(dtype)
    moved = out.cuda()
    gather_sum(copied, copies(rows, T), out[:, 2 : 2 + C])
    kept = torch.zeros(N, C + 3, dtype=dtype, device="cuda")
    kept[:, :C] = copied.cuda()
    gather_sum(kept[:, :C], copies(rows, T, "cuda"), moved[:, 2 : 2 + C])
    torch.testing.assert_close(moved.cpu(), out, atol=close, rtol=close)
