"""A mask comes of its key and salt alone; the backward pass meets the masks of the forward."""

import pytest
import torch

from lorgnette.kernels.dropout import Dropout, add_masked_grads, apply_dropout

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def mask(key: int = 7, rate: float = 0.3, device: str = "cpu") -> Dropout:
    return Dropout(torch.tensor(key, dtype=torch.int32, device=device), rate)


def test_key_and_salt_say_which_mask() -> None:
    x = torch.ones(33, 65)
    made = apply_dropout(x, 3, mask(), 5)
    assert torch.equal(made, apply_dropout(x, 3, mask(), 5))
    assert torch.equal(made[1], apply_dropout(x, 1, mask(), 6)[0])
    others = [made[0], made[1], made[2], apply_dropout(x, 1, mask(8), 5)[0]]
    for i, one in enumerate(others):
        for other in others[:i]:  # independent masks of rate 0.3 differ in 42 of 100 places
            assert (one != other).float().mean().item() == pytest.approx(0.42, abs=0.06)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.9])
def test_the_kept_share_and_its_scale(rate: float) -> None:
    made = apply_dropout(torch.ones(300, 301), 1, mask(rate=rate), 0)
    assert (made != 0).float().mean().item() == pytest.approx(1 - rate, abs=0.01)
    torch.testing.assert_close(made[made != 0].unique(), torch.tensor([1 / (1 - rate)]))


def test_add_dropped_is_the_gradient() -> None:
    torch.manual_seed(0)
    x, grads, wide = torch.randn(9, 13, requires_grad=True), torch.randn(3, 9, 13), torch.randn(9, 20)
    (apply_dropout(x, 3, mask(), 2) * grads).sum().backward()
    wanted = wide.clone()
    wanted[:, 4:17] += x.grad
    add_masked_grads(wide[:, 4:17], grads, mask(), 2)
    torch.testing.assert_close(wide, wanted, atol=1e-5, rtol=1e-5)


@CUDA
@pytest.mark.parametrize(("T", "C"), [(1, 1), (37, 513), (130, 1531)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_the_kernel_is_its_reference(T: int, C: int, dtype: torch.dtype, close: float) -> None:
    torch.manual_seed(T)
    wide, grads = torch.randn(T, C + 9).to(dtype), torch.randn(3, T, C).to(dtype)
    moved, there = wide.cuda(), mask(-3, device="cuda")
    made = apply_dropout(moved[:, 5 : 5 + C], 3, there, 11)
    torch.testing.assert_close(made.cpu(), apply_dropout(wide[:, 5 : 5 + C], 3, mask(-3), 11), atol=close, rtol=close)
    add_masked_grads(moved[:, 5 : 5 + C], grads.cuda(), there, 11)
    add_masked_grads(wide[:, 5 : 5 + C], grads, mask(-3), 11)
    torch.testing.assert_close(moved.cpu(), wide, atol=close, rtol=close)
