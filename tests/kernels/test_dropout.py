"""A mask depends on key, stream and column alone; the backward pass computes the masks of the forward pass again."""

import pytest
import torch
from torch import Tensor

from lorgnette.kernels.dropout import Dropout, add_masked_grads, apply_dropout, select_tokens

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_dropout(T: int, seed: int = 7, rate: float = 0.3, device: str = "cpu") -> Dropout:
    """With keys of all 32 bits."""
    keys = torch.randint(-(2**31), 2**31, (T,), generator=torch.Generator().manual_seed(seed))
    return Dropout(keys.to(device, torch.int32), rate)


def test_key_stream_and_column_determine_the_mask() -> None:
    x, dropout = torch.ones(33, 65), make_dropout(33)
    dropped = apply_dropout(x, 3, dropout, 5)
    assert torch.equal(dropped, apply_dropout(x, 3, make_dropout(33), 5))
    assert torch.equal(dropped[1], apply_dropout(x, 1, dropout, 6)[0])
    # Other rows beside it and more columns change nothing.
    rows = torch.tensor([30, 2, 2], dtype=torch.int32)
    selected = select_tokens(dropout, rows)
    assert selected is not None
    assert torch.equal(apply_dropout(torch.ones(3, 99), 3, selected, 5)[..., :65], dropped[:, rows.long()])
    assert select_tokens(dropout, None) is dropout
    assert select_tokens(None, rows) is None
    masks = [dropped[0], dropped[1], dropped[2], apply_dropout(x, 1, make_dropout(33, seed=8), 5)[0]]
    for i, a in enumerate(masks):
        for b in masks[:i]:  # independent masks of rate 0.3 differ in 42 of 100 elements
            assert (a != b).float().mean().item() == pytest.approx(0.42, abs=0.06)


@pytest.mark.parametrize("keys", [make_dropout(32).keys, torch.arange(32, dtype=torch.int32)], ids=["drawn", "counted"])
def test_the_masks_of_rows_and_projections_are_independent(keys: Tensor) -> None:
    """No two rows of 32 tokens and 8 projections correlate, nor do the columns of a row, however keys were drawn."""
    C, rate = 1536, 0.3
    kept = (apply_dropout(torch.ones(32, C), 8, Dropout(keys, rate), 100) != 0).flatten(0, 1).double()
    normed = (kept - (1 - rate)) / (rate * (1 - rate)) ** 0.5
    correlations = (normed @ normed.T / C).fill_diagonal_(0)
    assert correlations.abs().max() < 6 / C**0.5  # six standard deviations, of 32,640 pairs
    assert correlations.std() == pytest.approx(C**-0.5, rel=0.05)
    for distance in (1, 2, 16, 512):
        shifted = (normed[:, distance:] * normed[:, :-distance]).mean()
        assert abs(shifted) < 6 / (len(normed) * (C - distance)) ** 0.5


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.9])
def test_the_share_and_scale_of_kept_elements(rate: float) -> None:
    dropped = apply_dropout(torch.ones(300, 301), 1, make_dropout(300, rate=rate), 0)
    assert (dropped != 0).float().mean().item() == pytest.approx(1 - rate, abs=0.01)
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([1 / (1 - rate)]))


def test_adding_masked_grads_is_the_gradient() -> None:
    torch.manual_seed(0)
    x, grads, wide = torch.randn(9, 13, requires_grad=True), torch.randn(3, 9, 13), torch.randn(9, 20)
    (apply_dropout(x, 3, make_dropout(9), 2) * grads).sum().backward()
    expected = wide.clone()
    expected[:, 4:17] += x.grad
    add_masked_grads(wide[:, 4:17], grads, make_dropout(9), 2)
    torch.testing.assert_close(wide, expected, atol=1e-5, rtol=1e-5)


@CUDA
@pytest.mark.parametrize(("T", "C"), [(1, 1), (37, 513), (130, 1531)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
def test_the_kernel_equals_its_reference(T: int, C: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(T)
    wide, grads = torch.randn(T, C + 9).to(dtype), torch.randn(3, T, C).to(dtype)
    on_gpu, dropout = wide.cuda(), make_dropout(T, device="cuda")
    dropped = apply_dropout(on_gpu[:, 5 : 5 + C], 3, dropout, 11)
    assert torch.equal(dropped.cpu(), apply_dropout(wide[:, 5 : 5 + C], 3, make_dropout(T), 11))
    add_masked_grads(on_gpu[:, 5 : 5 + C], grads.cuda(), dropout, 11)
    add_masked_grads(wide[:, 5 : 5 + C], grads, make_dropout(T), 11)
    torch.testing.assert_close(on_gpu.cpu(), wide, atol=tolerance, rtol=tolerance)


@CUDA
def test_more_than_four_billion_elements() -> None:
    T, C = 2**16 + 8, 2**16
    if torch.cuda.mem_get_info()[0] < 2.5 * T * C:
        pytest.skip("needs 11 GB of a GPU")
    row = torch.ones(1, C, dtype=torch.bfloat16, device="cuda")
    dropout = make_dropout(T, device="cuda")
    dropped = apply_dropout(row.expand(T, C), 1, dropout, 3)[0, -8:]
    assert torch.equal(dropped, apply_dropout(row.expand(8, C), 1, Dropout(dropout.keys[-8:], dropout.rate), 3)[0])
