"""q and k rotate by row and column as in transformers, v is unchanged; the kernel equals its reference."""

import pytest
import torch
from tolerances import HALF_TOLERANCES
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from lorgnette.kernels.rotary_vision import apply_rotary_vision_

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def draw_inputs(rows: int, heads: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    angles = torch.randn(12, D // 4)
    positions = torch.randint(0, 12, (rows, 2), dtype=torch.int32)
    return torch.randn(rows, 3, heads, D).to(dtype), positions, angles.cos(), angles.sin()


def test_q_and_k_rotate_as_in_transformers() -> None:
    qkv, positions, cos, sin = draw_inputs(9, 3, 16)
    tables = [table[positions.long()].flatten(1) for table in (cos, sin)]
    whole = [torch.cat([table, table], -1) for table in tables]
    q, k, v = (part.clone() for part in qkv.unbind(1))
    expected = apply_rotary_pos_emb_vision(q, k, *whole)
    apply_rotary_vision_(qkv, positions, cos, sin)
    for ours, theirs in zip(qkv.unbind(1), (*expected, v), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_row_and_column_are_not_interchangeable() -> None:
    qkv, positions, cos, sin = draw_inputs(9, 3, 16)
    apply_rotary_vision_(swapped := qkv.clone(), positions.flip(1), cos, sin)
    apply_rotary_vision_(qkv, positions, cos, sin)
    assert not torch.allclose(swapped, qkv, atol=1e-2)


@CUDA
@pytest.mark.parametrize(("heads", "D"), [(2, 16), (3, 64), (16, 72), (16, 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_equals_its_reference(heads: int, D: int, dtype: torch.dtype) -> None:
    qkv, positions, cos, sin = draw_inputs(1001, heads, D, dtype)
    apply_rotary_vision_(expected := qkv.clone(), positions, cos, sin)
    apply_rotary_vision_(on_gpu := qkv.cuda(), positions.cuda(), cos.cuda(), sin.cuda())
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else HALF_TOLERANCES[dtype]
    torch.testing.assert_close(on_gpu.cpu(), expected, **tolerance)
