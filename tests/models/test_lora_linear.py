"""One product, forward and backward, against autograd on the plain formula."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lorgnette.kernels.dropout import Dropout
from lorgnette.models.lora_linear import LoraFactors, LoraLinear

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROWS, INPUTS, RANK, SCALE, SALT = 16, 24, 8, 1.5, 3
STACKED = (slice(0, 16), slice(16, 24), slice(24, 48))
"""Three stacked projections with outputs of their own."""
EVERY, SOME = STACKED, (STACKED[0], STACKED[2])
Drawn = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]


def drawn(adapted: Sequence[slice]) -> Drawn:
    """W, b, x, dy, A and B of what is adapted."""
    torch.manual_seed(0)
    w, bias, x, dy = (torch.randn(size) for size in ((48, INPUTS), (48,), (ROWS, INPUTS), (ROWS, 48)))
    factors = [torch.randn(rows.stop - rows.start, RANK) for rows in adapted]
    return w, bias, x, dy, torch.randn(len(adapted) * RANK, INPUTS), factors


def mask_on(device: str, drop: bool) -> Dropout | None:
    return Dropout(torch.tensor(5, dtype=torch.int32, device=device), 0.4) if drop else None


def plainly(given: Drawn, adapted: Sequence[slice], mask: Dropout | None) -> list[Tensor]:
    """y, dx, dA and every dB by autograd."""
    w, bias, x, dy, a, b = given
    x, a, *b = (leaf.clone().requires_grad_() for leaf in (x, a, *b))
    parts = [x @ w[rows].T + bias[rows] for rows in STACKED]
    for i, rows in enumerate(adapted):
        seen = x if mask is None else x * mask.build_mask(x.detach(), SALT + i)
        parts[STACKED.index(rows)] = parts[STACKED.index(rows)] + SCALE * seen @ a[i * RANK :][:RANK].T @ b[i].T
    y = torch.cat(parts, 1)
    return [y.detach(), *torch.autograd.grad(y, (x, a, *b), dy)]


@torch.no_grad()
def ours(
    given: Drawn,
    adapted: Sequence[slice],
    mask: Dropout | None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """The same; gradients are added to ones that were there, and the columns for factors held rubbish."""
    masters = [tensor.to(device) for tensor in (given[4], *given[5])]
    w, bias, x, dy = (tensor.to(device, dtype) for tensor in given[:4])
    matrix = LoraLinear(torch.cat([w, w.new_full((48, len(masters[0])), 9.0)], 1), bias, INPUTS, SALT)
    a, *b = masters
    factors = LoraFactors(tuple(adapted), a, tuple(b), torch.ones_like(a), tuple(torch.ones_like(part) for part in b))
    for move in matrix.attach_adapter(factors, SCALE):
        move.destination.copy_(move.source * move.scale)
    xu = torch.cat([x, x.new_empty(ROWS, len(a))], 1)
    y, dxu = matrix.forward(xu, mask), matrix.backward_input(dy)
    matrix.accumulate_lora_grads(dy, dxu, x, xu[:, INPUTS:], mask)
    assert torch.equal(matrix.base_forward(x), torch.addmm(bias, x, matrix.weight[:, :INPUTS].T))
    made = [y, matrix.complete_input_grad(dxu, mask), factors.grad_a - 1, *(grad - 1 for grad in factors.grad_b)]
    return [tensor.float().cpu() for tensor in made]


@pytest.mark.parametrize("adapted", [EVERY, SOME, STACKED[1:2]], ids=len)
@pytest.mark.parametrize("drop", [False, True])
def test_forward_and_gradients_are_the_plain_formulas(adapted: Sequence[slice], drop: bool) -> None:
    given, mask = drawn(adapted), mask_on("cpu", drop)
    wanted = plainly(given, adapted, mask)
    for one, other in zip(ours(given, adapted, mask), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-5)
    otherwise = plainly(given, adapted, mask_on("cpu", not drop))
    for one, other in zip(wanted, otherwise, strict=True):
        assert (one - other).abs().max() > 0.1  # the comparison can fail


def test_what_was_dropped_already_is_taken_as_it_is() -> None:
    w, bias, x, dy, a, b = drawn(EVERY)
    mask = mask_on("cpu", True)
    matrix = LoraLinear(torch.cat([w, torch.zeros(48, len(a))], 1), bias, INPUTS, SALT)
    matrix.attach_adapter(LoraFactors(EVERY, a, tuple(b), torch.zeros_like(a), tuple(map(torch.zeros_like, b))), SCALE)
    matrix._a.copy_(a)
    seen = torch.randn(3, ROWS, INPUTS)
    xu = torch.cat([x, torch.empty(ROWS, len(a))], 1)
    matrix.forward(xu, mask, seen)
    for i in range(3):
        torch.testing.assert_close(xu[:, INPUTS + i * RANK :][:, :RANK], seen[i] @ a[i * RANK :][:RANK].T)
    dxu, unread = matrix.backward_input(dy), torch.full_like(x, torch.nan)
    assert matrix.factors is not None
    matrix.accumulate_lora_grads(dy, dxu, unread, xu[:, INPUTS:], mask, seen)
    assert matrix.factors.grad_a.isfinite().all()


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("bias", [torch.randn(4), None], ids=["bias", "no bias"])
def test_without_factors_it_is_the_frozen_matrix(bias: Tensor | None, drop: bool) -> None:
    w, x, mask = torch.randn(4, INPUTS), torch.randn(ROWS, INPUTS), mask_on("cpu", drop)
    matrix = LoraLinear(w, bias, INPUTS, SALT)
    wanted = torch.nn.functional.linear(x, w, bias)
    assert matrix.ext_features == INPUTS
    torch.testing.assert_close(matrix.forward(x, mask), wanted)
    torch.testing.assert_close(matrix.base_forward(x), wanted)
    dxu = matrix.backward_input(torch.ones(ROWS, 4))
    matrix.accumulate_lora_grads(torch.ones(ROWS, 4), dxu, x, x[:, :0], mask)
    torch.testing.assert_close(matrix.complete_input_grad(dxu, mask), w.sum(0).expand(ROWS, -1))


@CUDA
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_on_a_gpu_it_is_the_same(drop: bool, dtype: torch.dtype, close: float) -> None:
    """In bf16, factors' gradients are added up in fp32; an error is measured against a tensor's largest entry."""
    given = drawn(SOME)
    made = ours(given, SOME, mask_on("cuda", drop), "cuda", dtype)
    for one, other in zip(made, plainly(given, SOME, mask_on("cpu", drop)), strict=True):
        assert (one - other).abs().max() < close * other.abs().max()
