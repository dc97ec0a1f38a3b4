"""Forward and backward in one matrix product equal autograd on LoRA's formula."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lorgnette.kernels.dropout import Dropout
from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4, quantize_absmax, quantize_nf4
from lorgnette.kernels.swiglu import swiglu_reference
from lorgnette.models.lora_linear import FrozenFactors, LoraFactors, LoraLinear, QuantizedWeight

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TOKENS, INPUTS, RANK, SCALE, RNG_STREAM = 16, 24, 8, 1.5, 3
STACKED = (slice(0, 16), slice(16, 24), slice(24, 48))
"""Output rows of three stacked projections."""
ALL_PROJECTIONS, TWO_PROJECTIONS = STACKED, (STACKED[0], STACKED[2])
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[Tensor]]


def draw_inputs(adapted: Sequence[slice]) -> Inputs:
    """W, b, x, dy, and A and B of the adapted projections."""
    torch.manual_seed(0)
    w, bias, x, dy = (torch.randn(size) for size in ((48, INPUTS), (48,), (TOKENS, INPUTS), (TOKENS, 48)))
    factors = [torch.randn(rows.stop - rows.start, RANK) for rows in adapted]
    return w, bias, x, dy, torch.randn(len(adapted) * RANK, INPUTS), factors


def make_dropout(device: str, use_dropout: bool) -> Dropout | None:
    return Dropout(torch.arange(5, 5 + TOKENS, dtype=torch.int32, device=device), 0.4) if use_dropout else None


def run_autograd(inputs: Inputs, adapted: Sequence[slice], dropout: Dropout | None) -> list[Tensor]:
    """y, dx, dA and every dB by autograd."""
    w, bias, x, dy, a, b = inputs
    x, a, *b = (leaf.clone().requires_grad_() for leaf in (x, a, *b))
    parts = [x @ w[rows].T + bias[rows] for rows in STACKED]
    for i, rows in enumerate(adapted):
        dropped = x if dropout is None else x * dropout.build_mask(x.detach(), RNG_STREAM + i)
        parts[STACKED.index(rows)] = parts[STACKED.index(rows)] + SCALE * dropped @ a[i * RANK :][:RANK].T @ b[i].T
    y = torch.cat(parts, 1)
    return [y.detach(), *torch.autograd.grad(y, (x, a, *b), dy)]


@torch.no_grad()
def run_lora_linear(
    inputs: Inputs,
    adapted: Sequence[slice],
    dropout: Dropout | None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    is_quantized: bool = False,
) -> list[Tensor]:
    """The same by LoraLinear. Gradients are added to ones, and the adapter's columns hold garbage before."""
    masters = [tensor.to(device) for tensor in (inputs[4], *inputs[5])]
    w, bias, x, dy = (tensor.to(device, dtype) for tensor in inputs[:4])
    weight: Tensor | QuantizedWeight = torch.cat([w, garbage := w.new_full((48, len(masters[0])), 9.0)], 1)
    if is_quantized:
        weight = QuantizedWeight(quantize_parts(w), garbage, w.new_full((99, 48), 9.0).flatten())
    linear = LoraLinear(weight, bias, INPUTS, RNG_STREAM)
    a, *b = masters
    factors = LoraFactors(tuple(adapted), a, tuple(b), torch.ones_like(a), tuple(torch.ones_like(part) for part in b))
    for op in linear.attach_adapter(factors, SCALE):
        op.destination.copy_(op.source * op.scale)
    x_ext = torch.cat([x, x.new_empty(TOKENS, len(a))], 1)
    y, dx_ext = linear.forward(x_ext, dropout), linear.backward_input(dy)
    linear.accumulate_lora_grads(dy, dx_ext, x, x_ext[:, INPUTS:], dropout)
    base = linear.forward(x_ext, dropout, use_adapter=False)
    assert torch.equal(base, torch.addmm(bias, x, linear.load_weight()[:, :INPUTS].T))
    results = [
        y,
        linear.add_lora_input_grad(dx_ext, dropout),
        factors.grad_a - 1,
        *(grad - 1 for grad in factors.grad_b),
    ]
    return [tensor.float().cpu() for tensor in results]


def quantize_parts(w: Tensor) -> tuple[Nf4Matrix | Tensor, ...]:
    """The three projections: the first in NF4, the second plain, the third in NF4 with double quantization."""
    parts: list[Nf4Matrix | Tensor] = []
    for rows, is_nested in zip(STACKED, (False, None, True), strict=True):
        if is_nested is None:
            parts.append(w[rows].clone())
            continue
        matrix = Nf4Matrix.allocate((len(w[rows]), INPUTS), w.device, is_nested=is_nested)
        absmax = torch.empty(len(matrix.absmax), device=w.device)
        quantize_nf4(w[rows], matrix.packed, absmax)
        quantize_absmax(absmax, matrix)
        parts.append(matrix)
    return tuple(parts)


@pytest.mark.parametrize("adapted", [ALL_PROJECTIONS, TWO_PROJECTIONS, STACKED[1:2]], ids=len)
@pytest.mark.parametrize("use_dropout", [False, True])
def test_forward_and_gradients_equal_the_formula(adapted: Sequence[slice], use_dropout: bool) -> None:
    inputs, dropout = draw_inputs(adapted), make_dropout("cpu", use_dropout)
    expected = run_autograd(inputs, adapted, dropout)
    for actual, reference in zip(run_lora_linear(inputs, adapted, dropout), expected, strict=True):
        torch.testing.assert_close(actual, reference, atol=2e-4, rtol=1e-5)
    with_other_dropout = run_autograd(inputs, adapted, make_dropout("cpu", not use_dropout))
    for actual, reference in zip(expected, with_other_dropout, strict=True):
        assert (actual - reference).abs().max() > 0.1  # negative control


@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_a_mask_selects_each_token_s_ranks(device: str, is_quantized: bool) -> None:
    """Of factors that have no masters, beside garbage in the columns."""
    w, bias, x, _, a, b = (value if isinstance(value, list) else value.to(device) for value in draw_inputs(STACKED))
    weight: Tensor | QuantizedWeight = torch.cat([w, garbage := w.new_full((48, len(a)), 9.0)], 1)
    if is_quantized:
        weight = QuantizedWeight(quantize_parts(w), garbage, w.new_full((99, 48), 9.0).flatten())
    linear, b = LoraLinear(weight, bias, INPUTS, RNG_STREAM), [part.to(device) for part in b]
    factors = zip(STACKED, a.split(RANK), b, strict=True)
    linear.write_factors([FrozenFactors(rows, a_i, b_i) for rows, a_i, b_i in factors])
    used = torch.arange(TOKENS, device=device)[:, None] + 1 >> torch.arange(RANK, device=device) & 1  # all differ
    mask = used == 0
    expected = x @ linear.load_weight()[:, :INPUTS].T + bias
    for rows, a_i, b_i in zip(STACKED, a.split(RANK), b, strict=True):
        expected[:, rows] += (x @ a_i.T * used) @ b_i.T
    x_ext = torch.cat([x, x.new_full((TOKENS, len(a)), 9.0)], 1)
    torch.testing.assert_close(linear.forward(x_ext, rank_mask=mask), expected, atol=2e-4, rtol=1e-5)
    of_all = linear.forward(x_ext, rank_mask=mask[:1])  # one mask for all tokens
    torch.testing.assert_close(of_all[:1], expected[:1], atol=2e-4, rtol=1e-5)
    assert (of_all - expected)[1:].abs().amax(1).min() > 0.1  # negative control
    assert (linear.forward(x_ext) - expected).abs().amax(1).min() > 0.1
    linear._a[RANK - 1] = torch.inf  # of a rank that no token uses
    torch.testing.assert_close(linear.forward(x_ext, rank_mask=mask), expected, atol=2e-4, rtol=1e-5)
    base = linear.forward(x_ext, rank_mask=torch.ones_like(mask))
    torch.testing.assert_close(base, linear.forward(x_ext, use_adapter=False), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_dropout", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_nf4_gives_the_numbers_of_the_dequantized_matrix(device: str, dtype: torch.dtype, use_dropout: bool) -> None:
    """Bit for bit: the products are the same."""
    w, *others = draw_inputs(TWO_PROJECTIONS)
    dequantized = w.to(device, dtype, copy=True)
    for rows, part in zip(STACKED, quantize_parts(dequantized), strict=True):
        if isinstance(part, Nf4Matrix):
            dequantize_nf4(part, dequantized[rows])
    run = [(w, True), (dequantized.float().cpu(), False), (w, False)]
    actual, expected, unquantized = (
        run_lora_linear(
            (weight, *others), TWO_PROJECTIONS, make_dropout(device, use_dropout), device, dtype,
            is_quantized=is_quantized,
        )
        for weight, is_quantized in run
    )  # fmt: skip
    assert all(map(torch.equal, actual, expected))
    assert not any(map(torch.equal, actual[:2], unquantized))  # negative control


def test_dropped_inputs_are_used_if_given() -> None:
    w, bias, x, dy, a, b = draw_inputs(ALL_PROJECTIONS)
    dropout = make_dropout("cpu", True)
    linear = LoraLinear(torch.cat([w, torch.zeros(48, len(a))], 1), bias, INPUTS, RNG_STREAM)
    linear.attach_adapter(
        LoraFactors(ALL_PROJECTIONS, a, tuple(b), torch.zeros_like(a), tuple(map(torch.zeros_like, b))), SCALE
    )
    linear._a.copy_(a)
    dropped = torch.randn(3, TOKENS, INPUTS)
    x_ext = torch.cat([x, torch.empty(TOKENS, len(a))], 1)
    linear.forward(x_ext, dropout, dropped)
    for i in range(3):
        torch.testing.assert_close(x_ext[:, INPUTS + i * RANK :][:, :RANK], dropped[i] @ a[i * RANK :][:RANK].T)
    dx_ext, unused = linear.backward_input(dy), torch.full_like(x, torch.nan)
    assert linear.factors is not None
    linear.accumulate_lora_grads(dy, dx_ext, unused, x_ext[:, INPUTS:], dropout, dropped)
    assert linear.factors.grad_a.isfinite().all()


@pytest.mark.parametrize("use_dropout", [False, True])
def test_the_products_with_swiglu_are_those_of_its_product(use_dropout: bool) -> None:
    """Forward and backward, beside SwiGLU, LoraLinear and autograd on their own."""
    w, bias, _, dy, a, b = draw_inputs(ALL_PROJECTIONS[:1] + ALL_PROJECTIONS[2:])
    dropout = make_dropout("cpu", use_dropout)
    gate_up = torch.randn(TOKENS, 2 * INPUTS)
    linear = LoraLinear(torch.cat([w, torch.zeros(48, RANK)], 1), bias, INPUTS, RNG_STREAM)
    factors = LoraFactors(
        ALL_PROJECTIONS[2:], a[:RANK], tuple(b[1:]), torch.zeros(RANK, INPUTS), (torch.zeros(24, RANK),)
    )
    for op in linear.attach_adapter(factors, SCALE):
        op.destination.copy_(op.source * op.scale)
    x_ext, u_copy, leaf = (
        torch.empty(TOKENS, INPUTS + RANK),
        torch.empty(TOKENS, RANK),
        gate_up.clone().requires_grad_(),
    )
    y = linear.forward_swiglu(gate_up, x_ext, dropout, u_copy)
    product = swiglu_reference(leaf)
    expected_ext = torch.cat([product.detach(), torch.empty(TOKENS, RANK)], 1)
    torch.testing.assert_close(y, linear.forward(expected_ext, dropout))
    assert torch.equal(u_copy, x_ext[:, INPUTS:])
    expected = run_autograd((w, bias, product.detach(), dy, a[:RANK], b[1:]), ALL_PROJECTIONS[2:], dropout)
    product.backward(expected[1])
    recomputed = torch.empty(TOKENS, INPUTS)
    dropped = linear.backward_swiglu(linear.backward_input(dy), gate_up, recomputed, dropout)
    assert leaf.grad is not None
    torch.testing.assert_close(gate_up, leaf.grad, atol=2e-4, rtol=1e-5)
    linear.accumulate_lora_grads(dy, linear.backward_input(dy), recomputed, u_copy, dropout, dropped)
    torch.testing.assert_close(factors.grad_a, expected[2], atol=2e-4, rtol=1e-5)
    other = run_autograd(
        (w, bias, product.detach(), dy, a[:RANK], b[1:]), ALL_PROJECTIONS[2:], make_dropout("cpu", not use_dropout)
    )
    assert (other[2] - expected[2]).abs().max() > 0.1  # negative control


@pytest.mark.parametrize("use_dropout", [False, True])
@pytest.mark.parametrize("bias", [torch.randn(4), None], ids=["bias", "no bias"])
def test_without_factors_it_is_a_plain_linear_layer(bias: Tensor | None, use_dropout: bool) -> None:
    w, x, dropout = torch.randn(4, INPUTS), torch.randn(TOKENS, INPUTS), make_dropout("cpu", use_dropout)
    linear = LoraLinear(w, bias, INPUTS, RNG_STREAM)
    expected = torch.nn.functional.linear(x, w, bias)
    assert linear.ext_features == INPUTS
    torch.testing.assert_close(linear.forward(x, dropout), expected)
    torch.testing.assert_close(linear.forward(x, use_adapter=False), expected)
    dx_ext = linear.backward_input(torch.ones(TOKENS, 4))
    linear.accumulate_lora_grads(torch.ones(TOKENS, 4), dx_ext, x, x[:, :0], dropout)
    torch.testing.assert_close(linear.add_lora_input_grad(dx_ext, dropout), w.sum(0).expand(TOKENS, -1))


@CUDA
@pytest.mark.parametrize("use_dropout", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_gpu_gives_the_same(use_dropout: bool, dtype: torch.dtype, tolerance: float) -> None:
    """In bf16 too, LoRA gradients accumulate in fp32. Errors are relative to a tensor's largest entry."""
    inputs = draw_inputs(TWO_PROJECTIONS)
    results = run_lora_linear(inputs, TWO_PROJECTIONS, make_dropout("cuda", use_dropout), "cuda", dtype)
    for actual, reference in zip(
        results, run_autograd(inputs, TWO_PROJECTIONS, make_dropout("cpu", use_dropout)), strict=True
    ):
        assert (actual - reference).abs().max() < tolerance * reference.abs().max()
