"""Packed attention equals attention of each example alone. (Within the whole model: parity/test_reference.py.)"""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from lorgnette.engine.packed_attention import (
    ATTENTION_NAME,
    MIN_FILL,
    build_segments,
    group_by_length,
    packed_attention_forward,
)

CPU = torch.device("cpu")


def draw(T: int, *, num_heads: int = 4, num_kv_heads: int = 2, D: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(T)
    return torch.randn(1, num_heads, T, D), torch.randn(1, num_kv_heads, T, D), torch.randn(1, num_kv_heads, T, D)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], scale: float | None = None) -> Tensor:
    segments = build_segments(offsets, CPU)
    return packed_attention_forward(nn.Identity(), q, k, v, None, scaling=scale, segments=segments)[0]


@pytest.mark.parametrize("offsets", [[0, 7], [0, 5, 8, 16], [0, 1, 2, 12], [0, 9, 10]])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_each_example_attends_to_itself(offsets: list[int], scale: float | None) -> None:
    q, k, v = draw(offsets[-1])
    separate = [
        scaled_dot_product_attention(
            q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], is_causal=True, scale=scale, enable_gqa=True
        )
        for a, b in pairwise(offsets)
    ]
    torch.testing.assert_close(attend_packed(q, k, v, offsets, scale), torch.cat(separate, dim=2).transpose(1, 2))


def test_no_query_sees_another_example_or_a_later_token() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in draw(12))
    attend_packed(q, k, v, [0, 5, 12])[0, 7].sum().backward()
    for tensor in (k, v):
        assert tensor.grad is not None
        visible = tensor.grad.abs().sum((0, 1, 3)) > 0
        assert visible.tolist() == [5 <= token <= 7 for token in range(12)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("has_flash", [True, False])
def test_on_a_gpu_with_and_without_flash_attention(has_flash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and gradients in float16 are those of float32 on the CPU. No [L, L] matrix is made."""
    monkeypatch.setattr("lorgnette.engine.packed_attention.has_flash_attention", lambda device: has_flash)
    offsets = [0, 300, 340, 1200]
    results = []
    for device, dtype in ((CPU, torch.float32), (torch.device("cuda"), torch.float16)):
        leaves = [
            tensor.to(device, dtype).requires_grad_() for tensor in draw(1200, num_heads=12, num_kv_heads=2, D=128)
        ]
        segments = build_segments(offsets, device)
        with sdpa_kernel([SDPBackend.MATH] if device == CPU else [SDPBackend.EFFICIENT_ATTENTION]):
            output = packed_attention_forward(nn.Identity(), *leaves, None, segments=segments)[0]
        (output.float() * torch.linspace(-1, 1, 128, device=device)).sum().backward()
        results.append([tensor.detach().float().cpu() for tensor in (output, *(leaf.grad for leaf in leaves))])
    for exact, half in zip(*results, strict=True):
        assert (half - exact).norm() < 5e-3 * exact.norm()
    assert (results[0][0] - results[1][0].roll(1, -1)).norm() > results[0][0].norm()  # negative control


def test_without_segments_it_equals_sdpa() -> None:
    q, k, v = draw(6)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True  # type: ignore[assignment]
    output, _ = packed_attention_forward(module, q, k, v, None, scaling=0.5)
    expected = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_segments_index_the_padded_batch() -> None:
    segments = build_segments([0, 2, 5], CPU)
    assert segments.padded_indices.tolist() == [0, 1, 3, 4, 5]
    assert (segments.cu_seqlens.tolist(), segments.num_segments, segments.max_length) == ([0, 2, 5], 2, 3)


@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_groups_of_similar_length_are_mostly_tokens(lengths: list[int]) -> None:
    offsets = [0, *accumulate(lengths)]
    groups = group_by_length(offsets)
    assert sorted(bounds for group in groups for bounds in group) == list(pairwise(offsets))
    sizes = [[end - start for start, end in group] for group in groups]
    assert all(min(size) >= MIN_FILL * max(size) for size in sizes)
    assert sum(len(size) * max(size) for size in sizes) <= sum(lengths) / MIN_FILL


def test_padding_is_zero_and_on_the_right() -> None:
    rows = build_segments([0, 2, 5], CPU).pad(torch.arange(1, 6))
    assert rows.tolist() == [[1, 2, 0], [3, 4, 5]]


def test_it_is_registered_in_transformers() -> None:
    assert AttentionInterface()[ATTENTION_NAME] is packed_attention_forward
    assert ATTENTION_NAME in AttentionMaskInterface()
