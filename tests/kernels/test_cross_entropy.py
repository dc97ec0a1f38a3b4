"""Losses and the logits' gradient are autograd's; the kernel is the plain torch of it."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lorgnette.kernels.cross_entropy import cross_entropy_

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def drawn(rows: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows)
    targets = torch.randint(vocabulary, (rows,))
    targets[0], targets[-1] = 0, vocabulary - 1
    return torch.randn(rows, vocabulary) * 4, targets, torch.rand(rows)


@pytest.mark.parametrize(("rows", "vocabulary"), [(2, 3), (7, 301)])
def test_losses_and_gradient_are_autograds(rows: int, vocabulary: int) -> None:
    logits, targets, weights = drawn(rows, vocabulary)
    weights[1] = 0.0
    leaf = logits.clone().requires_grad_()
    wanted = cross_entropy(leaf, targets, reduction="none")
    (wanted * weights).sum().backward()
    torch.testing.assert_close(cross_entropy_(logits, targets, weights), wanted.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, leaf.grad, atol=1e-6, rtol=1e-5)
    assert not logits[1].any()


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert cross_entropy_(logits, torch.tensor([1]), torch.ones(1)).item() == 2e4
    assert logits.tolist() == [[1.0, -1.0, 0.0]]


@CUDA
@pytest.mark.parametrize("vocabulary", [301, 8192, 20011])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_kernel_is_its_reference(vocabulary: int, dtype: torch.dtype, close: float) -> None:
    logits, targets, weights = drawn(5, vocabulary)
    logits = logits.to(dtype)
    moved = logits.cuda()
    losses = cross_entropy_(moved, targets.cuda(), weights.cuda())
    torch.testing.assert_close(losses.cpu(), cross_entropy_(logits, targets, weights), atol=close, rtol=close)
    torch.testing.assert_close(moved.cpu(), logits, atol=close, rtol=close)
