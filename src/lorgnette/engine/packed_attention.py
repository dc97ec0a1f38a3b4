"""Attention over packed examples for transformers' decoder, registered through its public `AttentionInterface`.

    packed    0 ─────── 5 ── 8 ───────────── 16          cu_seqlens = [0, 5, 8, 16]
    padded    ┌ 0…4 · · · · · ┐
    [S, L]    │ 5…7 · · · · · │   one causal call; padding follows the tokens of a row, and a causal query
              └ 8…………………15 ┘   never looks ahead, so no mask is needed and the result is exact

On CUDA in half precision, torch's flash kernels take the packed segments directly (`varlen_attn`). A GPU without flash
has memory-efficient kernels for the padded batch, which need as many key heads as query heads.
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

from lorgnette.device import has_flash_attention

ATTENTION_NAME = "lorgnette_packed"
MIN_FILL = 0.75
_HALF = (torch.bfloat16, torch.float16)
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

    def pad(self, packed: Float[Tensor, "T ..."] | Int[Tensor, "T ..."]) -> Tensor:
        """[T, …] → [S, L, …]: every example in a row of its own, with zeros on its right."""
        size = packed.shape[1:]
        rows = packed.new_zeros(self.num_segments * self.max_length, *size).index_copy(0, self.padded_indices, packed)
        return rows.view(self.num_segments, self.max_length, *size)


def group_by_length(offsets: list[int]) -> list[list[tuple[int, int]]]:
    """The packed examples, as (start, end), in groups of similar length, so that few tokens of a group are padding.

    offsets: as `build_segments` takes them. An example has at least MIN_FILL of the tokens of its group's longest.
    """
    groups: list[list[tuple[int, int]]] = []
    longest = 0
    for start, end in sorted(pairwise(offsets), key=lambda bounds: bounds[1] - bounds[0], reverse=True):
        if not groups or end - start < MIN_FILL * longest:
            groups.append([])
            longest = end - start
        groups[-1].append((start, end))
    return groups


def build_segments(offsets: list[int], device: torch.device) -> Segments:
    """offsets: the first token of every example, and the number of tokens."""
    lengths = [b - a for a, b in pairwise(offsets)]
    max_length = max(lengths)
    padded_indices = torch.cat([torch.arange(length) + i * max_length for i, length in enumerate(lengths)])
    boundaries = (padded_indices, torch.tensor(offsets, dtype=torch.int32))
    padded_indices, cu_seqlens = (t.to(device, non_blocking=device.type == "cuda") for t in boundaries)
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
    if query.is_cuda and query.dtype in _HALF and has_flash_attention(query.device):
        q, k, v = (packed[0].transpose(0, 1) for packed in (query, key, value))
        attended: Any = varlen_attn(
            q, k, v, segments.cu_seqlens, segments.cu_seqlens, segments.max_length, segments.max_length,
            scale=scaling, window_size=(-1, 0), **_GQA_ARGUMENTS,
        )  # fmt: skip
        return attended[None], None
    return _attend_padded(query, key, value, scaling, segments), None


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, segments: Segments) -> Tensor:
    q, k, v = (segments.pad(packed[0].transpose(0, 1)).transpose(1, 2) for packed in (query, key, value))
    if q.is_cuda and q.dtype in _HALF:
        k, v = (heads.repeat_interleave(q.shape[1] // k.shape[1], 1) for heads in (k, v))
    output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=k.shape[1] < q.shape[1])
    rows = output.transpose(1, 2).flatten(0, 1)
    return rows.index_select(0, segments.padded_indices)[None]


AttentionInterface.register(ATTENTION_NAME, packed_attention_forward)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
