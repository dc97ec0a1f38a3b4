"""NF4 numbers equal bitsandbytes' bit for bit; the kernels equal their plain definitions."""

import pytest
import torch
from tiny_models import dequantize_with_bitsandbytes
from torch import Tensor

from lorgnette.kernels import nf4
from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4, quantize_absmax, quantize_nf4

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(33, 64), (6, 96), (16, 1536), (300, 200)]
"""Blocks within rows, across rows, several nested blocks, and a last block that is not full."""


def draw_weight(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Values of a normal distribution whose width differs from block to block, one row of zeros, one of one sign."""
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.rand(shape[0], 1) * 0.05
    weight[0], weight[1] = 0, weight[1].abs()
    return weight.to(dtype)


def quantize(weight: Tensor, *, is_nested: bool) -> Nf4Matrix:
    matrix = Nf4Matrix.allocate((weight.shape[0], weight.shape[1]), weight.device, is_nested=is_nested)
    absmax = torch.empty(len(matrix.absmax), device=weight.device)
    quantize_nf4(weight, matrix.packed, absmax)
    quantize_absmax(absmax, matrix)
    return matrix


def dequantize(matrix: Nf4Matrix, dtype: torch.dtype) -> Tensor:
    """The values, written into columns of a wider matrix; nothing beside them changes."""
    rows, columns = matrix.shape
    wide = torch.full((rows, columns + 24), 7.0, dtype=dtype, device=matrix.packed.device)
    dequantize_nf4(matrix, wide[:, 8:-16])
    assert (wide[:, :8] == 7).all()
    assert (wide[:, -16:] == 7).all()
    return wide[:, 8:-16].contiguous()


@pytest.mark.parametrize("device", DEVICES)
def test_a_graph_can_be_captured_right_after_a_matrix_is_there(device: str) -> None:
    """The levels are there too: to make them is a copy from the host, which no graph can hold."""
    nf4._get_levels.cache_clear()
    matrix = quantize(draw_weight((16, 1536), torch.float32).to(device), is_nested=True)
    num_made = nf4._get_levels.cache_info().misses
    expected, out = dequantize(matrix, torch.float16), torch.empty(16, 1536, dtype=torch.float16, device=device)
    assert nf4._get_levels.cache_info().misses == num_made == 1
    if device == "cuda":
        nf4._get_levels.cache_clear()
        matrix = quantize(draw_weight((16, 1536), torch.float32).to(device), is_nested=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            dequantize_nf4(matrix, out)
        graph.replay()
        assert torch.equal(out, expected)


def view_bits(values: Tensor) -> Tensor:
    """Of 0 and -0 as well: a test for equality takes them for the same."""
    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_equal_those_of_bitsandbytes(
    shape: tuple[int, int], dtype: torch.dtype, is_nested: bool, device: str
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes").functional
    weight = draw_weight(shape, dtype).to(device)
    if device == "cuda":  # see quantize_nf4
        weight[0] = weight[1].flip(0)
    options = {"blocksize": 64, "quant_type": "nf4"}
    packed, state = bitsandbytes.quantize_4bit(weight, compress_statistics=is_nested, **options)
    matrix = quantize(weight, is_nested=is_nested)
    assert torch.equal(matrix.packed, packed.flatten())
    assert torch.equal(matrix.absmax, state.absmax)
    stored = Nf4Matrix(shape, packed.flatten(), state.absmax, None)
    if is_nested:
        nested = nf4.NestedAbsmax(state.state2.code, state.state2.absmax, state.offset.view(1))
        stored = Nf4Matrix(shape, packed.flatten(), state.absmax, nested)
        assert matrix.nested is not None
        for ours, theirs in zip(
            (matrix.nested.code, matrix.nested.absmax, matrix.nested.offset),
            (nested.code, nested.absmax, nested.offset), strict=True,
        ):  # fmt: skip
            assert torch.equal(ours, theirs)
    for out_dtype in DTYPES:
        if device == "cpu" and out_dtype == torch.float16 and weight.numel() % 64:
            continue  # bitsandbytes rounds up what is half way there, at the end of the last block on some CPUs
        state.dtype = out_dtype
        expected = dequantize_with_bitsandbytes(packed, state)
        assert torch.equal(view_bits(dequantize(stored, out_dtype)), view_bits(expected))
        assert torch.equal(dequantize(matrix, out_dtype), expected)
    swapped = Nf4Matrix(shape, (packed >> 4 | packed << 4).flatten(), stored.absmax, stored.nested)
    assert not torch.equal(dequantize(swapped, out_dtype), expected)  # negative control


def test_pieces_of_whole_blocks_give_the_same_bytes() -> None:
    weight = draw_weight((34, 96), torch.float32)
    whole = quantize(weight, is_nested=False)
    packed, absmax = torch.empty_like(whole.packed), torch.empty_like(whole.absmax)
    for start in range(0, 34, 2):  # two rows of 96 values are three blocks
        packed_rows, blocks = packed[start * 48 :][:96], absmax[start * 3 // 2 :][:3]
        quantize_nf4(weight[start : start + 2], packed_rows, blocks)
    assert torch.equal(packed, whole.packed)
    assert torch.equal(absmax, whole.absmax)


@CUDA
@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (7, 4096), (1024, 3584)])
def test_the_kernels_equal_their_definitions(shape: tuple[int, int], dtype: torch.dtype, is_nested: bool) -> None:
    weight = draw_weight(shape, dtype)
    on_cpu, on_gpu = quantize(weight, is_nested=False), quantize(weight.cuda(), is_nested=False)
    assert torch.equal(on_gpu.packed.cpu(), on_cpu.packed)
    assert torch.equal(on_gpu.absmax.cpu(), on_cpu.absmax)
    on_cpu = quantize(weight, is_nested=is_nested)
    nested = on_cpu.nested and nf4.NestedAbsmax(
        on_cpu.nested.code.cuda(), on_cpu.nested.absmax.cuda(), on_cpu.nested.offset.cuda()
    )
    moved = Nf4Matrix(shape, on_cpu.packed.cuda(), on_cpu.absmax.cuda(), nested)
    for out_dtype in DTYPES:
        assert torch.equal(view_bits(dequantize(moved, out_dtype).cpu()), view_bits(dequantize(on_cpu, out_dtype)))
