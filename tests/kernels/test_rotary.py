"""Rotary embedding equals transformers' rotate_half; the gradient rotates back."""

import pytest
import torch
from torch import Tensor

from lorgnette.kernels.rotary import apply_rotary, compute_cos_sin, compute_inv_freq, expand_mrope_section

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CPU = torch.device("cpu")


def draw_cos_sin(T: int, sections: list[int]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(T)
    return compute_cos_sin(
        torch.randint(50, (3, T)), expand_mrope_section(sections, CPU), compute_inv_freq(2 * sum(sections), 1e4, CPU)
    )


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """transformers' formula; x [T, H, D]."""
    first, second = x.chunk(2, -1)
    return x * cos.repeat(1, 2)[:, None] + torch.cat([-second, first], -1) * sin.repeat(1, 2)[:, None]


def test_every_channel_pair_rotates_by_its_coordinate() -> None:
    position_ids = torch.tensor([[0, 5], [1, 6], [2, 7]])
    axes, inv_freq = expand_mrope_section([1, 2, 1], CPU), compute_inv_freq(8, 1e4, CPU)
    assert axes.tolist() == [0, 1, 1, 2]
    torch.testing.assert_close(inv_freq, torch.tensor([1.0, 0.1, 0.01, 0.001]))
    cos, sin = compute_cos_sin(position_ids, axes, inv_freq)
    angles = torch.tensor([[0, 0.1, 0.01, 0.002], [5, 0.6, 0.06, 0.007]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())
    assert cos.is_contiguous()  # the kernels read them row by row
    assert sin.is_contiguous()


@pytest.mark.parametrize(
    ("sections", "expected"),
    [([2, 2, 2], [0, 1, 2] * 2), ([3, 2, 1], [0, 1, 2, 0, 1, 0]), ([24, 20, 20], [0, 1, 2] * 20 + [0] * 4)],
)
def test_interleaved_coordinates_take_turns(sections: list[int], expected: list[int]) -> None:
    assert expand_mrope_section(sections, CPU, is_interleaved=True).tolist() == expected
    assert expand_mrope_section(sections, CPU).tolist() != expected  # negative control


def test_it_equals_rotate_half_and_its_gradient() -> None:
    (cos, sin), T = draw_cos_sin(7, [1, 2, 1]), 7
    rows = torch.randn(T, 7 * 8, requires_grad=True)  # 3 queries, 2 keys, 2 values of 8
    expected = torch.cat([rotate_half(rows.view(T, 7, 8)[:, :5], cos, sin), rows.view(T, 7, 8)[:, 5:]], 1)
    rotated, grad = rows.detach().clone(), torch.randn(T, 7, 8)
    apply_rotary(rotated, cos, sin, 5)
    torch.testing.assert_close(rotated, expected.detach().flatten(1), atol=1e-6, rtol=1e-5)
    expected.backward(grad)
    unrotated = grad.flatten(1).clone()
    apply_rotary(unrotated, cos, sin, 5, inverse=True)
    torch.testing.assert_close(unrotated, rows.grad, atol=1e-6, rtol=1e-5)


@CUDA
@pytest.mark.parametrize(("T", "heads", "kv_heads", "sections"), [(1, 1, 1, [2, 3, 3]), (37, 7, 3, [16, 24, 24])])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_the_kernel_equals_its_reference(
    T: int, heads: int, kv_heads: int, sections: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    (cos, sin), D = draw_cos_sin(T, sections), 2 * sum(sections)
    count = heads + 2 * kv_heads
    wide, results = torch.randn(T, count * D + 16).to(dtype), []
    for device in ("cuda", "cpu"):
        rows, unrotated, c, s = (tensor.to(device, copy=True) for tensor in (wide, wide, cos, sin))
        apply_rotary(rows[:, 16:], c, s, heads + kv_heads)
        apply_rotary(unrotated[:, 16:], c, s, heads + kv_heads, inverse=True)
        results.append((rows.cpu(), unrotated.cpu()))
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)
