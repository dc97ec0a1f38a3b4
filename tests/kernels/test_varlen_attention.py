"""Every span attends to itself alone; the kernel equals its reference."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lorgnette.kernels.varlen_attention import split_into_tiles, varlen_attention

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
LENGTHS = (1, 64, 65, 3, 200, 128)


def attend(qkv: torch.Tensor, lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    return varlen_attention(qkv, lengths, torch.from_numpy(split_into_tiles(lengths)).to(qkv.device))


def draw_qkv(H: int, D: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(sum(LENGTHS), 3, H, D).to(dtype)


def test_tiles_cover_each_span_and_nothing_else() -> None:
    tiles = split_into_tiles(LENGTHS)
    covered = [row for first, _, end in tiles.tolist() for row in range(first, min(first + 64, end))]
    assert covered == list(range(sum(LENGTHS)))
    assert {(start, end) for _, start, end in tiles.tolist()} == {
        (end - length, end) for end, length in zip(np.cumsum(LENGTHS).tolist(), LENGTHS, strict=True)
    }
    assert split_into_tiles(()).shape == (0, 3)


def test_a_span_attends_to_itself_alone() -> None:
    qkv = draw_qkv(3, 24)
    start, parts = 0, []
    for length in LENGTHS:
        q, k, v = qkv[start : start + length].permute(1, 2, 0, 3)
        parts.append(scaled_dot_product_attention(q, k, v).transpose(0, 1))
        start += length
    torch.testing.assert_close(attend(qkv), torch.cat(parts), atol=1e-6, rtol=0)
    other_spans = (*LENGTHS[:-2], LENGTHS[-2] + LENGTHS[-1])
    assert not torch.allclose(attend(qkv, other_spans), attend(qkv), atol=1e-2)  # negative control


@CUDA
@pytest.mark.parametrize("D", [16, 24, 64, 72, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_equals_its_reference(D: int, dtype: torch.dtype) -> None:
    qkv = draw_qkv(3, D, dtype)
    on_gpu = attend(qkv.cuda())
    torch.testing.assert_close(on_gpu.cpu().float(), attend(qkv.float()), atol=2e-2, rtol=2**-7)
    assert torch.equal(on_gpu, attend(qkv.cuda()))
