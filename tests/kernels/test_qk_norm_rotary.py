"""The norm of q's and k's heads and the rotation behind it equal torch's, and so does their gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from lorgnette.kernels.qk_norm_rotary import norm_and_rotate, norm_and_rotate_backward
from lorgnette.kernels.rotary import apply_rotary

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
EPS = 1e-6
SIZES = [(1, (1, 1), 8), (37, (7, 3), 32), (5, (32, 8), 128)]


def draw_inputs(T: int, num_heads: tuple[int, int], D: int) -> list[Tensor]:
    """qkv, both norms' weights, cosines, sines, the gradient of the result."""
    torch.manual_seed(T)
    width, angles = (num_heads[0] + 2 * num_heads[1]) * D, torch.rand(T, D // 2) * 9
    return [torch.randn(T, width) * 3, torch.rand(2, D) + 0.5, angles.cos(), angles.sin(), torch.randn(T, width)]


def compute_with_torch(
    qkv: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, num_heads: tuple[int, int], *, norm_first: bool = True
) -> Tensor:
    """transformers' formulas, with autograd."""
    H, K = num_heads
    parts = qkv.view(len(qkv), H + 2 * K, -1).split([H, K, K], 1)
    cos, sin = cos.repeat(1, 2)[:, None], sin.repeat(1, 2)[:, None]

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, EPS)

    done = [
        rotate(norm(part, weight)) if norm_first else norm(rotate(part), weight)
        for part, weight in zip(parts, weights, strict=False)
    ]
    return torch.cat([*done, parts[2]], 1).flatten(1)


@pytest.mark.parametrize(("T", "num_heads", "D"), SIZES)
def test_it_equals_torch_and_autograd(T: int, num_heads: tuple[int, int], D: int) -> None:
    qkv, weights, cos, sin, grad = draw_inputs(T, num_heads, D)
    leaf = qkv.clone().requires_grad_()
    expected = compute_with_torch(leaf, weights, cos, sin, num_heads)
    expected.backward(grad)
    out, in_place, dqkv, end = torch.full_like(qkv, 7.0), qkv.clone(), grad.clone(), sum(num_heads) * D
    norm_and_rotate(qkv, weights, EPS, cos, sin, num_heads, out)
    assert torch.equal(qkv, leaf)  # the backward pass reads it
    assert (out[:, end:] == 7).all()
    norm_and_rotate(in_place, weights, EPS, cos, sin, num_heads, in_place)
    torch.testing.assert_close(in_place, expected.detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(in_place[:, :end], out[:, :end])
    norm_and_rotate_backward(dqkv, qkv, weights, EPS, cos, sin, num_heads)
    torch.testing.assert_close(dqkv, leaf.grad, atol=1e-5, rtol=1e-5)


def test_the_order_the_heads_weights_and_the_norms_gradient_matter() -> None:
    """Negative control."""
    qkv, weights, cos, sin, grad = draw_inputs(*SIZES[1])
    num_heads, out = SIZES[1][1], qkv.clone()
    norm_and_rotate(out, weights, EPS, cos, sin, num_heads, out)
    for wrong_weights, norm_first in ((weights, False), (weights.flip(0), True)):
        wrong = compute_with_torch(qkv, wrong_weights, cos, sin, num_heads, norm_first=norm_first)
        assert (out - wrong).abs().max() > 0.1
    rotated, dqkv = grad.clone(), grad.clone()
    apply_rotary(rotated, cos, sin, sum(num_heads), inverse=True)
    norm_and_rotate_backward(dqkv, qkv, weights, EPS, cos, sin, num_heads)
    assert (dqkv - rotated).abs().max() > 0.1


@CUDA
@pytest.mark.parametrize(("T", "num_heads", "D"), [*SIZES, (19, (12, 2), 128), (3, (64, 8), 128)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_the_kernels_equal_their_definition(
    T: int, num_heads: tuple[int, int], D: int, dtype: torch.dtype, tolerance: float
) -> None:
    """In fp32 from the same rounded inputs. The rows are columns of a wider matrix."""
    inputs = [tensor.to(dtype) for tensor in draw_inputs(T, num_heads, D)]
    results = []
    for device, precision in (("cuda", dtype), ("cpu", torch.float32)):
        qkv, weights, cos, sin, grad = (tensor.to(device, precision) for tensor in inputs)
        cos, sin = cos.float(), sin.float()
        wide = torch.nn.functional.pad(qkv, (16, 16))
        rows, out, dqkv = wide[:, 16:-16], torch.full_like(wide, 7.0), grad.clone()
        norm_and_rotate(rows, weights, EPS, cos, sin, num_heads, out[:, 16:-16])
        norm_and_rotate_backward(dqkv, rows, weights, EPS, cos, sin, num_heads)
        assert torch.equal(rows, qkv)
        in_place, end = qkv.clone(), sum(num_heads) * D
        norm_and_rotate(in_place, weights, EPS, cos, sin, num_heads, in_place)
        assert torch.equal(in_place[:, :end], out[:, 16 : 16 + end])
        assert torch.equal(in_place[:, end:], qkv[:, end:])
        assert (out[:, 16 + end :] == 7).all()
        results.append([tensor.cpu().float() for tensor in (out, dqkv)])
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)
