"""NF4 matrices (QLoRA: Dettmers et al. 2023), number for number as bitsandbytes quantizes and dequantizes them.

    w = LEVELS[nibble] · absmax[block of 64]                       in fp32, then rounded once to the dtype of the output
    absmax = code[byte] · nested.absmax[block of 256] + offset     with double quantization: two roundings, no FMA

The values of a matrix are one row, in blocks of 64 that do not care where a row of the matrix ends. Two values share a
byte, the first in the high half.

Dequantization runs before every product of a training with NF4, so it has a kernel: 0.5 bytes are read and 2 written
per value. Quantization runs once, while weights are loaded; its kernel spares memory beside the values.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import no_type_check

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from lorgnette.kernels import NF4_BLOCK_SIZE, NF4_NESTED_BLOCK_SIZE
from lorgnette.kernels.triton_import import tl, triton

BLOCK_SIZE, NESTED_BLOCK_SIZE = NF4_BLOCK_SIZE, NF4_NESTED_BLOCK_SIZE
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The paper's appendix E: quantiles of a normal distribution, scaled to [-1, 1]."""
_SMALLEST = 1e-38  # a block of zeros has a finite reciprocal
_WORD = 8  # values in 32 bits
_WORDS = 512  # of a program
_BLOCKS = 16  # of a program


@dataclass(frozen=True, slots=True)
class NestedAbsmax:
    """What turns 8-bit absmax back into fp32. offset: their mean."""

    code: Float32[Tensor, "256"]
    absmax: Float32[Tensor, " _"]
    offset: Float32[Tensor, "1"]


@dataclass(frozen=True, slots=True)
class Nf4Matrix:
    """A matrix in NF4. nested: with double quantization; `absmax` has 8 bits then."""

    shape: tuple[int, int]
    packed: UInt8[Tensor, " bytes"]
    absmax: Float32[Tensor, " blocks"] | UInt8[Tensor, " blocks"]
    nested: NestedAbsmax | None

    @classmethod
    def allocate(cls, shape: tuple[int, int], device: torch.device, *, is_nested: bool) -> "Nf4Matrix":
        """All values are 0."""
        size = shape[0] * shape[1]
        blocks = -(-size // BLOCK_SIZE)
        packed = torch.zeros(-(-size // 2), dtype=torch.uint8, device=device)
        _get_levels(packed.device)  # a copy that the host waits for: it cannot be made in the capture of a graph
        if not is_nested:
            return cls(shape, packed, torch.zeros(blocks, device=device), None)
        outer = torch.zeros(-(-blocks // NESTED_BLOCK_SIZE), device=device)
        nested = NestedAbsmax(build_nested_code().to(device), outer, torch.zeros(1, device=device))
        return cls(shape, packed, torch.zeros(blocks, dtype=torch.uint8, device=device), nested)


@cache
def build_nested_code() -> Float32[Tensor, "256"]:
    """The 256 levels of 8-bit absmax (Dettmers et al. 2022: dynamic tree quantization), in ascending order.

    0, 1, and for every power of ten from 1e-6 to 1 twice as many levels as for the one before, of both signs.
    """
    levels = [0.0, 1.0]
    for power in range(7):
        bounds = torch.linspace(0.1, 1, 2**power + 1)
        means = (10 ** (power - 6)) * ((bounds[:-1] + bounds[1:]) / 2)
        levels += [*means.tolist(), *(-means).tolist()]
    return torch.tensor(sorted(levels))


def dequantize_nf4(matrix: Nf4Matrix, out: Float[Tensor, "O I"]) -> None:
    """Write the values into `out`, which may be columns of a wider matrix."""
    rows, columns = matrix.shape
    if not out.is_cuda or columns % _WORD:
        absmax = _dequantize_absmax(matrix).repeat_interleave(BLOCK_SIZE)[: rows * columns]
        nibbles = torch.stack([matrix.packed >> 4, matrix.packed & 15], 1).flatten()[: rows * columns]
        out.copy_((_get_levels(out.device)[nibbles.int()] * absmax).view(rows, columns))
        return
    num_words, absmax, nested = rows * columns // _WORD, matrix.absmax, matrix.nested
    parts = (nested.code, nested.absmax, nested.offset) if nested else (absmax, absmax, absmax)  # not read without
    # FMA would round the nested absmax once where bitsandbytes rounds twice.
    _dequantize_kernel[(triton.cdiv(num_words, _WORDS),)](
        matrix.packed.view(torch.int32), absmax, _get_levels(out.device), *parts, out, num_words, columns // _WORD,
        out.stride(0), IS_NESTED=nested is not None, WORDS_PER_BLOCK=BLOCK_SIZE // _WORD,
        NESTED_BLOCK=NESTED_BLOCK_SIZE, WORDS=_WORDS, enable_fp_fusion=False,
    )  # fmt: skip


def quantize_nf4(
    values: Float[Tensor, "m I"], packed: UInt8[Tensor, " bytes"], absmax: Float32[Tensor, " blocks"]
) -> None:
    """Quantize whole blocks of a matrix, or its last ones, into its bytes and absmax. values: contiguous.

    A block of zeros stays zeros. bitsandbytes does so on a CPU alone; on a GPU it takes the lowest level.
    """
    size, bounds = values.numel(), _get_bounds(values.device)
    if values.is_cuda:
        grid = (triton.cdiv(len(absmax), _BLOCKS),)
        _quantize_kernel[grid](values, bounds, packed, absmax, size, BLOCK=BLOCK_SIZE, BLOCKS=_BLOCKS)
        return
    padded = torch.nn.functional.pad(values.flatten().float(), (0, -size % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
    torch.amax(padded.abs(), 1, out=absmax)
    nibbles = torch.bucketize(padded * (1 / absmax.clamp(min=_SMALLEST))[:, None], bounds, out_int32=True)
    pairs = nibbles.to(torch.uint8).view(-1, 2)[: len(packed)]
    torch.bitwise_or(pairs[:, 0] << 4, pairs[:, 1], out=packed)


def quantize_absmax(absmax: Float32[Tensor, " blocks"], matrix: Nf4Matrix) -> None:
    """Store fp32 absmax in a matrix, in 8 bits with double quantization."""
    if matrix.nested is None:
        matrix.absmax.copy_(absmax)
        return
    nested, size = matrix.nested, len(absmax)
    torch.mean(absmax, 0, keepdim=True, out=nested.offset)
    centered = torch.nn.functional.pad(absmax - nested.offset, (0, -size % NESTED_BLOCK_SIZE))
    blocks = centered.view(-1, NESTED_BLOCK_SIZE)
    torch.amax(blocks.abs(), 1, out=nested.absmax)
    scaled = (blocks * (1 / nested.absmax.clamp(min=_SMALLEST))[:, None]).flatten()[:size]
    if not absmax.is_cuda:  # bitsandbytes rounds to a grid of 2^16 values first, on a CPU alone
        scaled = ((scaled.clamp(-1, 1) + 1) * 0.5 * 65535 + 0.5).int() * 2.0 / 65535 - 1
    matrix.absmax.copy_(torch.bucketize(scaled, (nested.code[:-1] + nested.code[1:]) * 0.5))


def _dequantize_absmax(matrix: Nf4Matrix) -> Float32[Tensor, " blocks"]:
    if (nested := matrix.nested) is None:
        return matrix.absmax
    outer = nested.absmax.repeat_interleave(NESTED_BLOCK_SIZE)[: len(matrix.absmax)]
    return nested.code[matrix.absmax.int()] * outer + nested.offset


@cache
def _get_levels(device: torch.device) -> Float32[Tensor, "16"]:
    return torch.tensor(LEVELS, device=device)


@cache
def _get_bounds(device: torch.device) -> Float32[Tensor, "15"]:
    """The middle of each pair of levels, which belongs to the lower one."""
    levels = torch.tensor(LEVELS)
    return torch.stack([(low + high) / 2 for low, high in pairwise(levels)]).to(device)


if triton is not None:

    @triton.jit
    @no_type_check
    def _dequantize_kernel(
        words, absmax, levels, nested_code, nested_absmax, nested_offset, out, num_words, words_per_row, out_stride,
        IS_NESTED: tl.constexpr, WORDS_PER_BLOCK: tl.constexpr, NESTED_BLOCK: tl.constexpr, WORDS: tl.constexpr,
    ):  # fmt: skip
        offs = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
        mask = offs < num_words
        word, block = tl.load(words + offs, mask=mask, other=0), offs // WORDS_PER_BLOCK
        if IS_NESTED:
            code = tl.load(nested_code + tl.load(absmax + block, mask=mask, other=0).to(tl.int32))
            scale = code * tl.load(nested_absmax + block // NESTED_BLOCK, mask=mask, other=0.0)
            scale += tl.load(nested_offset)
        else:
            scale = tl.load(absmax + block, mask=mask, other=0.0)
        # The eight values of a word: the first is in the high half of the lowest byte.
        number = tl.arange(0, 8)
        nibbles = (word[:, None] >> ((number ^ 1) * 4)[None, :]) & 15
        values = tl.load(levels + nibbles) * scale[:, None]
        start = (offs // words_per_row).to(tl.int64) * out_stride + (offs % words_per_row) * 8
        tl.store(out + start[:, None] + number[None, :], values.to(out.dtype.element_ty), mask=mask[:, None])

    @triton.jit
    @no_type_check
    def _quantize_kernel(values, bounds, packed, absmax, size, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
        block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
        offs = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        x = tl.load(values + offs, mask=offs < size, other=0.0).to(tl.float32)
        largest = tl.max(tl.abs(x), 1)
        # The reciprocal is rounded as on a CPU; `/` is not. A block of zeros has a finite one.
        divisor = tl.where(largest > 0, largest, 1.0)
        scaled = x * tl.div_rn(tl.full((BLOCKS,), 1.0, tl.float32), divisor)[:, None]
        nibbles = tl.zeros((BLOCKS, BLOCK), tl.int32)
        for i in tl.static_range(15):
            nibbles += (scaled > tl.load(bounds + i)).to(tl.int32)
        high, low = tl.split(tl.reshape(nibbles, (BLOCKS, BLOCK // 2, 2)))
        offs_packed = block[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
        tl.store(packed + offs_packed, (high * 16 + low).to(tl.uint8), mask=offs_packed < (size + 1) // 2)
        tl.store(absmax + block, largest, mask=block * BLOCK < size)
