"""One product, forward and backward, against autograd on the plain formula."""

import torch

from lorgnette.model.lora_linear import Factors, LoraLinear

ROWS, INPUTS, RANK, SCALE = 5, 6, 2, 1.5
WIDTHS = (4, 3, 5)
"""Three stacked projections; the second is not adapted."""
ADAPTED = (slice(0, 4), slice(7, 12))


def test_forward_and_gradients_are_the_plain_formulas() -> None:
    torch.manual_seed(0)
    w, bias = torch.randn(sum(WIDTHS), INPUTS), torch.randn(sum(WIDTHS))
    a, b = torch.randn(2 * RANK, INPUTS), [torch.randn(rows.stop - rows.start, RANK) for rows in ADAPTED]
    x, dy = torch.randn(ROWS, INPUTS), torch.randn(ROWS, sum(WIDTHS))
    for leaf in (x, a, *b):
        leaf.requires_grad_()
    plain = x @ w.T + bias
    for i, rows in enumerate(ADAPTED):
        added = torch.zeros_like(plain)
        added[:, rows] = SCALE * (x @ a[i * RANK : (i + 1) * RANK].T) @ b[i].T
        plain = plain + added
    wanted = torch.autograd.grad(plain, (x, a, *b), dy)

    with torch.no_grad():
        matrix = LoraLinear(torch.cat([w, torch.full((len(w), 2 * RANK), 9.0)], 1), bias, INPUTS, salt=0)
        factors = Factors(ADAPTED, a, tuple(b), torch.ones_like(a), tuple(torch.ones_like(part) for part in b))
        for move in matrix.adapt(factors, SCALE):
            move.place.copy_(move.source * move.scale)
        xu = torch.cat([x, torch.empty(ROWS, 2 * RANK)], 1)
        torch.testing.assert_close(matrix.forward(xu, None), plain)
        dxu = matrix.through(dy)
        matrix.add_factor_grads(dy, dxu, x, xu[:, INPUTS:], None)
        found = matrix.add_input_grad(dxu, None)
    torch.testing.assert_close(found, wanted[0])
    torch.testing.assert_close(factors.grad_a - 1, wanted[1])  # added to what was there
    for grad, want in zip(factors.grad_b, wanted[2:], strict=True):
        torch.testing.assert_close(grad - 1, want)


def test_without_factors_it_is_the_frozen_matrix() -> None:
    w, x = torch.randn(4, INPUTS), torch.randn(ROWS, INPUTS)
    matrix = LoraLinear(w, None, INPUTS, salt=0)
    assert matrix.width == INPUTS
    torch.testing.assert_close(matrix.forward(x, None), x @ w.T)
    torch.testing.assert_close(matrix.plain(x), x @ w.T)
    dxu = matrix.through(torch.ones(ROWS, 4))
    torch.testing.assert_close(matrix.add_input_grad(dxu, None), w.sum(0).expand(ROWS, -1))
