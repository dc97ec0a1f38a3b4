"""Attention over packed rows, plugged into transformers through its public `AttentionInterface`.

    rows      0 ─────── 5 ── 8 ───────────── 16          starts = [0, 5, 8, 16]
    padded    ┌ 0…4 · · · ┐
    [S, L]    │ 5…7 · · · · · │   one causal call; a row's padding stands behind it, where a causal
              └ 8………………15 ┘   query never looks, so that no mask is needed and the result is exact

On CUDA in bfloat16 the flash kernels inside torch take the segments as they are (`varlen_attn`).
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
# torch 2.11 takes grouped heads as they come; from 2.12 on it wants to be told.
_GQA_ARGUMENTS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the examples of a packed row stand.

    slots: [T] place of each row in the padded [S, L]; starts: [B = S + 1] on the device; longest: L.
    """

    padded_indices: Int[Tensor, " T"]
    cu_seqlens: Int[Tensor, " B"]
    num_segments: int
    max_length: int


def build_segments(starts: list[int], device: torch.device) -> Segments:
    lengths = [b - a for a, b in pairwise(starts)]
    longest = max(lengths)
    rows = torch.cat([torch.arange(length) + i * longest for i, length in enumerate(lengths)])
    moved = torch.tensor(starts, dtype=torch.int32)
    return Segments(rows.to(device, non_blocking=True), moved.to(device, non_blocking=True), len(lengths), longest)


def packed_attention_forward(
    module: nn.Module,
    query: Float[Tensor, "batch H T D"],
    key: Float[Tensor, "batch K N D"],
    value: Float[Tensor, "batch K N D"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    **rest: Any,
) -> tuple[Float[Tensor, "batch T H D"], None]:
    """The attention function of every decoder layer; without `segments` (generation) it is transformers' SDPA."""
    if segments is None:
        attended, _ = _SDPA(module, query, key, value, attention_mask, scaling=scaling, **rest)
        return attended, None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _attend_flash(query, key, value, scaling, segments), None
    return _attend_padded(query, key, value, scaling, segments), None


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, segments: Segments) -> Tensor:
    S, L = segments.num_segments, segments.max_length
    T, D = query.shape[2], query.shape[3]

    def spread(rows: Float[Tensor, "1 H T D"]) -> Float[Tensor, "S H L D"]:
        heads = rows.shape[1]
        padded = rows.new_zeros(S * L, heads, D).index_copy(0, segments.padded_indices, rows[0].transpose(0, 1))
        return padded.view(S, L, heads, D).transpose(1, 2)

    attended = scaled_dot_product_attention(
        spread(query), spread(key), spread(value), is_causal=True, scale=scaling, enable_gqa=True
    )
    return attended.transpose(1, 2).reshape(S * L, -1, D).index_select(0, segments.padded_indices).view(1, T, -1, D)


def _attend_flash(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, segments: Segments) -> Tensor:
    q, k, v = (rows[0].transpose(0, 1) for rows in (query, key, value))
    attended: Any = varlen_attn(
        q, k, v, segments.cu_seqlens, segments.cu_seqlens, segments.max_length, segments.max_length,
        scale=scaling, window_size=(-1, 0), **_GQA_ARGUMENTS,
    )  # fmt: skip
    return attended[None]  # type: ignore[no-any-return]


AttentionInterface.register(ATTENTION_NAME, packed_attention_forward)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
