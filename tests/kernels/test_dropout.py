"""A mask depends on key and stream alone; the backward pass recomputes the masks of the forward pass."""

import pytest
import torch

from lorgnette.kernels.dropout import Dropout, add_masked_grads, apply_dropout

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_dropout(key: int = 7, rate: float = 0.3, device: str = "cpu") -> Dropout:
    return Dropout(torch.tensor(key, dtype=torch.int32, device=device), rate)


def test_key_and_stream_determine_the_mask() -> None:
    x = torch.ones(33, 65)
    dropped = apply_dropout(x, 3, make_dropout(), 5)
    assert torch.equal(dropped, apply_dropout(x, 3, make_dropout(), 5))
    assert torch.equal(dropped[1], apply_dropout(x, 1, make_dropout(), 6)[0])
    masks = [dropped[0], dropped[1], dropped[2], apply_dropout(x, 1, make_dropout(8), 5)[0]]
    for i, a in enumerate(masks):
        for b in masks[:i]:  # independent masks of rate 0.3 differ in 42 of 100 elements
            assert (a != b).float().mean().item() == pytest.approx(0.42, abs=0.06)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.9])
def test_the_share_and_scale_of_kept_elements(rate: float) -> None:
    dropped = apply_dropout(torch.ones(300, 301), 1, make_dropout(rate=rate), 0)
    assert (dropped != 0).float().mean().item() == pytest.approx(1 - rate, abs=0.01)
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([1 / (1 - rate)]))


def test_adding_masked_grads_is_the_gradient() -> None:
    torch.manual_seed(0)
    x, grads, wide = torch.randn(9, 13, requires_grad=True), torch.randn(3, 9, 13), torch.randn(9, 20)
    (apply_dropout(x, 3, make_dropout(), 2) * grads).sum().backward()
    expected = wide.clone()
    expected[:, 4:17] += x.grad
    add_masked_grads(wide[:, 4:17], grads, make_dropout(), 2)
    torch.testing.assert_close(wide, expected, atol=1e-5, rtol=1e-5)


@CUDA
@pytest.mark.parametrize(("T", "C"), [(1, 1), (37, 513), (130, 1531)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_the_kernel_equals_its_reference(T: int, C: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(T)
    wide, grads = torch.randn(T, C + 9).to(dtype), torch.randn(3, T, C).to(dtype)
    on_gpu, dropout = wide.cuda(), make_dropout(-3, device="cuda")
    dropped = apply_dropout(on_gpu[:, 5 : 5 + C], 3, dropout, 11)
    torch.testing.assert_close(
        dropped.cpu(), apply_dropout(wide[:, 5 : 5 + C], 3, make_dropout(-3), 11), atol=tolerance, rtol=tolerance
    )
    add_masked_grads(on_gpu[:, 5 : 5 + C], grads.cuda(), dropout, 11)
    add_masked_grads(wide[:, 5 : 5 + C], grads, make_dropout(-3), 11)
    torch.testing.assert_close(on_gpu.cpu(), wide, atol=tolerance, rtol=tolerance)
