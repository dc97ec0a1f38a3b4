"""What a file says of an NF4 weight is checked; rows are quantized where their blocks end."""

import json
from typing import Any

import pytest
import torch

from lorgnette.errors import LorgnetteError
from lorgnette.kernels.nf4 import Nf4Matrix
from lorgnette.models.nf4_weights import Nf4State, RowsToQuantize, allocate_absmax, list_parts, parse_nf4_state
from lorgnette.models.quantization import PARTS

CPU = torch.device("cpu")
STATE: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [48, 96]}
NESTED = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.03}


def parse(**changes: Any) -> Nf4State:
    return parse_nf4_state(json.dumps(STATE | NESTED | changes).encode())


def test_a_state_is_read() -> None:
    assert parse(dtype="float16") == ((48, 96), 0.03, torch.float16)
    assert parse_nf4_state(json.dumps(STATE).encode()) == ((48, 96), None, torch.bfloat16)


@pytest.mark.parametrize(
    "changes",
    [
        {"quant_type": "fp4"}, {"blocksize": 128}, {"nested_blocksize": 64}, {"nested_dtype": "float16"},
        {"nested_offset": None}, {"nested_offset": "0"}, {"shape": [48]}, {"shape": None}, {"shape": [-48, -96]},
        {"dtype": "int8"}, {"dtype": None}, {"dtype": ["float32"]},
    ],
    ids=str,
)  # fmt: skip
def test_another_state_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LorgnetteError, match=f"has the {next(iter(changes))} "):
        parse(**changes)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"nested_offset": 1e999}'])
def test_a_broken_state_is_refused(content: bytes) -> None:
    with pytest.raises(LorgnetteError):
        parse_nf4_state(content)


def test_parts_have_the_names_of_the_format() -> None:
    names = list(list_parts("X.weight", Nf4Matrix.allocate((48, 96), CPU, is_nested=True)))
    assert names[0] == "X.weight"
    assert {name.removeprefix("X.weight.") for name in names[1:]} < set(PARTS)
    assert len(list_parts("X.weight", Nf4Matrix.allocate((48, 96), CPU, is_nested=False))) == 2


@pytest.mark.parametrize(("rows", "width", "unit"), [(7, 64, 1), (8, 96, 2), (9, 24, 8), (5, 1536, 1)])
def test_rows_are_quantized_in_pieces(rows: int, width: int, unit: int) -> None:
    """Into their places, whatever the size of the pieces; the last one may end within a block."""
    values = torch.randn(rows, width, dtype=torch.float64)
    packed = []
    for step in (unit, 3 * unit, 99 * unit):
        matrix = Nf4Matrix.allocate((rows, width), CPU, is_nested=False)
        absmax = allocate_absmax({"X": matrix})["X"]
        target = RowsToQuantize(matrix.packed, absmax, matrix.shape, torch.bfloat16)
        assert target.rows_per_unit == unit
        for row in range(0, rows, step):
            target[row : row + step].copy_(values[row : row + step])
        packed.append((matrix.packed, absmax))
    assert all(torch.equal(*pair) for parts in packed for pair in zip(parts, packed[0], strict=True))
    other = Nf4Matrix.allocate((rows, width), CPU, is_nested=False)
    RowsToQuantize(other.packed, absmax, other.shape, torch.float32).copy_(values)
    assert not torch.equal(absmax, packed[0][1]) or not torch.equal(other.packed, packed[0][0])  # rounded first
