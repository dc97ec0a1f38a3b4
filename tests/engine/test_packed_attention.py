"""Packed attention is attention of each segment by itself. (Within the whole model: parity/test_reference.py.)"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from lorgnette.engine.packed_attention import ATTENTION_NAME, build_segments, packed_attention_forward

CPU = torch.device("cpu")


def drawn(T: int, *, heads: int = 4, shared: int = 2, D: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(T)
    return torch.randn(1, heads, T, D), torch.randn(1, shared, T, D), torch.randn(1, shared, T, D)


def packed(q: Tensor, k: Tensor, v: Tensor, starts: list[int], scale: float | None = None) -> Tensor:
    return packed_attention_forward(nn.Identity(), q, k, v, None, scaling=scale, segments=build_segments(starts, CPU))[
        0
    ]


@pytest.mark.parametrize("starts", [[0, 7], [0, 5, 8, 16], [0, 1, 2, 12], [0, 9, 10]])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_each_segment_is_by_itself(starts: list[int], scale: float | None) -> None:
    q, k, v = drawn(starts[-1])
    apart = [
        scaled_dot_product_attention(
            q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], is_causal=True, scale=scale, enable_gqa=True
        )
        for a, b in pairwise(starts)
    ]
    torch.testing.assert_close(packed(q, k, v, starts, scale), torch.cat(apart, dim=2).transpose(1, 2))


def test_nothing_crosses_a_border_or_looks_ahead() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in drawn(12))
    packed(q, k, v, [0, 5, 12])[0, 7].sum().backward()
    for tensor in (k, v):
        assert tensor.grad is not None
        seen = tensor.grad.abs().sum((0, 1, 3)) > 0
        assert seen.tolist() == [5 <= row <= 7 for row in range(12)]


def test_without_segments_it_is_transformers_own() -> None:
    q, k, v = drawn(6)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True  # type: ignore[assignment]
    found, _ = packed_attention_forward(module, q, k, v, None, scaling=0.5)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_segments_say_where_each_row_stands_in_the_padded_batch() -> None:
    segments = build_segments([0, 2, 5], CPU)
    assert segments.padded_indices.tolist() == [0, 1, 3, 4, 5]
    assert (segments.cu_seqlens.tolist(), segments.num_segments, segments.max_length) == ([0, 2, 5], 2, 3)


def test_it_is_known_to_transformers_by_its_name() -> None:
    assert AttentionInterface()[ATTENTION_NAME] is packed_attention_forward
    assert ATTENTION_NAME in AttentionMaskInterface()
