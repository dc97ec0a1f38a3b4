"""Losses and gradient equal autograd's; the kernel equals its reference."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lorgnette.kernels.cross_entropy import cross_entropy_

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def draw_inputs(rows: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows)
    targets = torch.randint(vocabulary, (rows,))
    targets[0], targets[-1] = 0, vocabulary - 1
    return torch.randn(rows, vocabulary) * 4, targets, torch.rand(rows)


@pytest.mark.parametrize(("rows", "vocabulary"), [(2, 3), (7, 301)])
def test_losses_and_gradient_equal_autograd(rows: int, vocabulary: int) -> None:
    logits, targets, weights = draw_inputs(rows, vocabulary)
    weights[1] = 0.0
    leaf = logits.clone().requires_grad_()
    expected = cross_entropy(leaf, targets, reduction="none")
    (expected * weights).sum().backward()
    torch.testing.assert_close(cross_entropy_(logits, targets, weights), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, leaf.grad, atol=1e-6, rtol=1e-5)
    assert not logits[1].any()


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert cross_entropy_(logits, torch.tensor([1]), torch.ones(1)).item() == 2e4
    assert logits.tolist() == [[1.0, -1.0, 0.0]]


@CUDA
@pytest.mark.parametrize("vocabulary", [301, 8192, 20011])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_the_kernel_equals_its_reference(vocabulary: int, dtype: torch.dtype, tolerance: float) -> None:
    logits, targets, weights = draw_inputs(5, vocabulary)
    logits = logits.to(dtype)
    on_gpu = logits.cuda()
    losses = cross_entropy_(on_gpu, targets.cuda(), weights.cuda())
    torch.testing.assert_close(losses.cpu(), cross_entropy_(logits, targets, weights), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(on_gpu.cpu(), logits, atol=tolerance, rtol=tolerance)
