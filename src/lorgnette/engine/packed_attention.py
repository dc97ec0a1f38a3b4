"""Attention over packed examples for transformers' decoder, registered through its public `AttentionInterface`.

    packed    0 ─────── 5 ── 8 ───────────── 16          cu_seqlens = [0, 5, 8, 16]
    padded    ┌ 0…4 · · · · · ┐
    [S, L]    │ 5…7 · · · · · │   one causal call; padding follows the tokens of a row, and a causal query
              └ 8…………………15 ┘   never looks ahead, so no mask is needed and the result is exact

On CUDA in bfloat16, torch's flash kernels take the packed segments directly (`varlen_attn`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "lorgnette_packed"
_SDPA: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
# torch 2.11 accepts grouped heads without a flag; from 2.12 on it needs one.
_GQA_ARGUMENTS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


@dataclass(frozen=True, slots=True)
class Segments:
    """The boundaries of the packed examples.

    padded_indices: [T] index of each token in the padded [S · L]; cu_seqlens: [B = S + 1]; max_length: L.
    """

    padded_indices: Int[Tensor, " T"]
    cu_seqlens: Int[Tensor, " B"]
    num_segments: int
    max_length: int


def build_segments(offsets: list[int], device: torch.device) -> Segments:
    """offsets: the first token of every example, and the number of tokens."""
    lengths = [b - a for a, b in pairwise(offsets)]
    max_length = max(lengths)
    padded_indices = torch.cat([torch.arange(length) + i * max_length for i, length in enumerate(lengths)])
    boundaries = (padded_indices, torch.tensor(offsets, dtype=torch.int32))
    padded_indices, cu_seqlens = (t.to(device, non_blocking=True) for t in boundaries)
    return Segments(padded_indices, cu_seqlens, len(lengths), max_length)


def packed_attention_forward(
    module: nn.Module,
    query: Float[Tensor, "batch H T D"],
    key: Float[Tensor, "batch K N D"],
    value: Float[Tensor, "batch K N D"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch T H D"], None]:
    """The attention of every decoder layer. Without `segments` (in generation) it is transformers' SDPA."""
    if segments is None:
        output, _ = _SDPA(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        q, k, v = (packed[0].transpose(0, 1) for packed in (query, key, value))
        attended: Any = varlen_attn(
            q, k, v, segments.cu_seqlens, segments.cu_seqlens, segments.max_length, segments.max_length,
            scale=scaling, window_size=(-1, 0), **_GQA_ARGUMENTS,
        )  # fmt: skip
        return attended[None], None
    return _attend_padded(query, key, value, scaling, segments), None


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, segments: Segments) -> Tensor:
    S, L = segments.num_segments, segments.max_length
    T, D = query.shape[2], query.shape[3]

    def pad(packed: Float[Tensor, "1 H T D"]) -> Float[Tensor, "S H L D"]:
        heads = packed.shape[1]
        padded = packed.new_zeros(S * L, heads, D).index_copy(0, segments.padded_indices, packed[0].transpose(0, 1))
        return padded.view(S, L, heads, D).transpose(1, 2)

    output = scaled_dot_product_attention(
        pad(query), pad(key), pad(value), is_causal=True, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).reshape(S * L, -1, D).index_select(0, segments.padded_indices).view(1, T, -1, D)


AttentionInterface.register(ATTENTION_NAME, packed_attention_forward)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
