"""The KV cache of a batch of prompts and their growing answers.

              ╭──────── L slots ─────────╮
row 0         p p p p p p p p a a · · · ·      p: prompt tokens, a: answer tokens so far
row 1         p p p p p a a · · · · · · ·      lengths: 10, 7: the next token's keys and values go there
row 2         · · · · · · · · · · · · · ·      padding: a CUDA graph needs fixed sizes
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64
from torch import Tensor

from lorgnette.models.registry import TextConfig
from lorgnette.planning.limits import pad_slots

StepKind = bool | Literal["masked"]
"""Decode steps with the adapter (True), without it, and with another mask of the ranks for every row."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Number of answers, and of tokens per prompt and answer together."""

    num_rows: int
    num_slots: int

    def round_up(self) -> "CacheShape":
        """To a power of two rows (at least 8), and to an eighth of a power of two slots (steps of at least 64)."""
        return CacheShape(max(8, 1 << (self.num_rows - 1).bit_length()), pad_slots(self.num_slots))

    def fits(self, shape: "CacheShape") -> bool:
        """Whether `shape` fits into this one and uses at least about half of it."""
        max_rows, max_slots = 2 * max(shape.num_rows, 4), 2 * max(shape.num_slots, 64)
        return shape.num_rows <= self.num_rows <= max_rows and shape.num_slots <= self.num_slots <= max_slots


@dataclass(slots=True)
class KVCache:
    """Tensors at fixed addresses, as captured decode steps need. B rows, L slots, K key-value heads, D head width.

    layers: [B, L, 2K, D] of each layer, key heads and then value heads. row_offsets: B multiples of L, the first slot
    of each row. state: `lengths`, `position_ids` and `active` in one tensor, for one copy from the host. input_ids: the
    newest tokens. logits: of the next tokens. num_active_rows: rows at the front that are no padding. rank_mask: of
    each row, if its rows may have different adapters (`LoraLinear.forward`). graphs: the captured decode step of each
    kind; None after the first step, which is not captured.
    """

    shape: CacheShape
    layers: list[Float[Tensor, "B L KK D"]]
    row_offsets: Int64[Tensor, " B"]
    state: Int32[Tensor, "3 B"]
    input_ids: Int64[Tensor, " B"]
    logits: Float32[Tensor, "B V"]
    num_active_rows: int = 0
    rank_mask: Bool[Tensor, "B r"] | None = None
    graphs: dict[StepKind, torch.cuda.CUDAGraph | None] = field(default_factory=dict)

    @classmethod
    def from_config(cls, shape: CacheShape, config: TextConfig, device: torch.device, dtype: torch.dtype) -> "KVCache":
        B, L = shape.num_rows, shape.num_slots
        layer_size = (B, L, 2 * config.num_kv_heads, config.head_dim)
        return cls(
            shape,
            [torch.zeros(layer_size, dtype=dtype, device=device) for _ in range(config.num_layers)],
            torch.arange(B, device=device) * L,
            torch.zeros(3, B, dtype=torch.int32, device=device),
            torch.zeros(B, dtype=torch.int64, device=device),
            torch.zeros(B, config.vocab_size, device=device),
        )

    @property
    def lengths(self) -> Int32[Tensor, " B"]:
        """Filled slots."""
        return self.state[0]

    @property
    def position_ids(self) -> Int32[Tensor, " B"]:
        """Of the next token, the same in all three coordinates."""
        return self.state[1]

    @property
    def active(self) -> Int32[Tensor, " B"]:
        """1 for each row whose answer grows. The others overwrite one slot of their own."""
        return self.state[2]

    def view_slots(self, layer: int, rows: slice = slice(None)) -> Float[Tensor, "N KK D"]:
        """All slots of these rows, one after another."""
        return self.layers[layer][rows].flatten(0, 1)
