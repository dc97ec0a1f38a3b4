"""NF4 weights between files and memory: what a file says of one, where its parts go, rows that are quantized."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import parse_config, shorten
from lorgnette.kernels.nf4 import BLOCK_SIZE, NESTED_BLOCK_SIZE, Nf4Matrix, quantize_nf4

MAX_STATE_BYTES = 2**16
"""bitsandbytes writes 200."""
_DTYPES = ("float16", "bfloat16", "float32")


class Nf4State(NamedTuple):
    """offset: None without double quantization. dtype: of the values that were quantized."""

    shape: tuple[int, int]
    offset: float | None
    dtype: torch.dtype


def parse_nf4_state(content: bytes) -> Nf4State:
    """What a file says of an NF4 weight. Raises LorgnetteError if bitsandbytes does not write it so, or in blocks of
    other sizes."""
    state = parse_config(content)
    if not isinstance(state, dict):
        raise LorgnetteError("is not an object")
    is_nested, shape = "nested_blocksize" in state, state.get("shape")
    expected = {"quant_type": "nf4", "blocksize": BLOCK_SIZE}
    expected |= {"nested_blocksize": NESTED_BLOCK_SIZE, "nested_dtype": "float32"} if is_nested else {}
    for key, value in expected.items():
        if state.get(key) != value:
            raise LorgnetteError(f"has the {key} {shorten(repr(state.get(key)))}, not {value!r}")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)):
        raise LorgnetteError(f"has the shape {shorten(repr(shape))}")
    offset = state.get("nested_offset") if is_nested else None
    if is_nested and not isinstance(offset, float):
        raise LorgnetteError(f"has the nested_offset {shorten(repr(offset))}")
    dtype = state.get("dtype")
    if dtype not in _DTYPES:
        raise LorgnetteError(f"has the dtype {shorten(repr(dtype))}")
    return Nf4State((shape[0], shape[1]), offset, getattr(torch, dtype))


def list_parts(name: str, matrix: Nf4Matrix) -> dict[str, Tensor]:
    """The tensors of a matrix by their names in a file. name: of the weight."""
    parts = {name: matrix.packed, f"{name}.absmax": matrix.absmax}
    if matrix.nested is None:
        return parts
    return parts | {f"{name}.nested_absmax": matrix.nested.absmax, f"{name}.nested_quant_map": matrix.nested.code}


def allocate_absmax(matrices: Mapping[str, Nf4Matrix]) -> dict[str, Tensor]:
    """Memory for fp32 absmax of matrices on one device, in one piece: small pieces would leave gaps."""
    sizes = [len(matrix.absmax) for matrix in matrices.values()]
    device = next((matrix.absmax.device for matrix in matrices.values()), None)
    return dict(zip(matrices, torch.split(torch.empty(sum(sizes), device=device), sizes), strict=True))


@dataclass(frozen=True, slots=True)
class RowsToQuantize:
    """Rows of a matrix that are quantized as their values arrive.

    packed, absmax: of these rows; absmax in fp32. dtype: values are rounded to it first.
    """

    packed: Tensor
    absmax: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def is_cuda(self) -> bool:
        return self.packed.is_cuda

    @property
    def rows_per_unit(self) -> int:
        """The fewest rows that end where a block ends."""
        return BLOCK_SIZE // math.gcd(BLOCK_SIZE, self.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "RowsToQuantize":
        """rows: from a multiple of `rows_per_unit` to another, or to the end."""
        start, end = (row * self.shape[1] for row in rows.indices(len(self))[:2])
        packed, absmax = (
            part[start // size : -(-end // size)] for part, size in ((self.packed, 2), (self.absmax, BLOCK_SIZE))
        )
        return replace(self, packed=packed, absmax=absmax, shape=((end - start) // self.shape[1], self.shape[1]))

    def copy_(self, values: Tensor) -> None:
        """Quantize the values. On CUDA the host does not wait."""
        quantize_nf4(values.to(self.device, non_blocking=True).to(self.dtype), self.packed, self.absmax)
