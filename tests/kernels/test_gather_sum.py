"""The gradient of a gather, for rows gathered never, once and several times."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from lorgnette.kernels.gather_sum import GatherSegments, build_segments, gather_sum

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROWS = np.array([4, 1, 1, 6, 1, 0, 6, 1], dtype=np.int32)


def make_segments(rows: np.ndarray, count: int, device: str = "cpu") -> GatherSegments:
    return GatherSegments(*(torch.from_numpy(part).to(device) for part in build_segments(rows, count)))


def test_segments_list_the_copies_of_each_row() -> None:
    indices, offsets = build_segments(ROWS, 8)
    copies = [indices[a:b].tolist() for a, b in pairwise(offsets)]
    assert copies == [[5], [1, 2, 4, 7], [], [], [0], [], [3, 6], []]


def test_it_is_the_gradient_of_a_gather() -> None:
    torch.manual_seed(0)
    grad, x = torch.randn(len(ROWS), 5), torch.randn(8, 5, requires_grad=True)
    (x[torch.from_numpy(ROWS).long()] * grad).sum().backward()
    wide = torch.full((8, 9), 3.0)
    total = gather_sum(grad, make_segments(ROWS, 8), wide[:, 2:7])
    torch.testing.assert_close(total, x.grad)
    torch.testing.assert_close(total, torch.zeros(8, 5).index_add_(0, torch.from_numpy(ROWS), grad))
    assert not total[[2, 3, 5, 7]].any()
    assert total.data_ptr() == wide[:, 2:7].data_ptr()
    assert (wide[:, :2] == 3).all()
    assert (wide[:, 7:] == 3).all()


@CUDA
@pytest.mark.parametrize(("N", "T", "C"), [(1, 1, 1), (201, 37, 333), (50, 77, 1027)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_the_kernel_equals_its_reference(N: int, T: int, C: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(N)
    rows = np.random.default_rng(N).integers(0, T, N).astype(np.int32)
    gathered, out = torch.randn(N, C + 3).to(dtype)[:, :C], torch.zeros(T, C + 7).to(dtype)
    on_gpu = out.cuda()
    gather_sum(gathered, make_segments(rows, T), out[:, 2 : 2 + C])
    gathered_on_gpu = torch.zeros(N, C + 3, dtype=dtype, device="cuda")
    gathered_on_gpu[:, :C] = gathered.cuda()
    gather_sum(gathered_on_gpu[:, :C], make_segments(rows, T, "cuda"), on_gpu[:, 2 : 2 + C])
    torch.testing.assert_close(on_gpu.cpu(), out, atol=tolerance, rtol=tolerance)
