"""Answers being written: what each row has been asked and has said, as keys and values of every layer.

              ╭──────── L places ────────╮
row 0         p p p p p p p p a a · · · ·      p the prompt's tokens, a the answer's so far
row 1         p p p p p a a · · · · · · ·      lengths: 10, 7: the next token goes there
row 2         · · · · · · · · · · · · · ·      padding: a recorded step wants its sizes fixed
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from lorgnette.models.qwen2_vl.config import TextConfig


@dataclass(frozen=True, slots=True)
class CacheShape:
    """How many answers at once, and how many tokens of prompt and answer together."""

    num_rows: int
    num_slots: int

    def round_up(self) -> "CacheShape":
        """Up to a power of two rows (8 at the least), and the next of four steps between two powers of two places."""
        step = max(64, (1 << (self.num_slots - 1).bit_length()) // 8)
        return CacheShape(max(8, 1 << (self.num_rows - 1).bit_length()), -(-self.num_slots // step) * step)

    def fits(self, shape: "CacheShape") -> bool:
        """Whether that fits without much waste."""
        rows, places = 2 * max(shape.num_rows, 4), 2 * max(shape.num_slots, 64)
        return shape.num_rows <= self.num_rows <= rows and shape.num_slots <= self.num_slots <= places


@dataclass(slots=True)
class KVCache:
    """A room's tensors; they stay where they are, for recorded steps to find them. B rows, L places, K key heads.

    layers: [B, L, 2K, D] of each layer, a place's keys and then its values; begins: B·first place of each row;
    lengths: places filled; positions: the next token's, in all three coordinates; tokens: the last said; logits: of the
    next token; graphs: the step's recording with the adapter and without; count: rows in use.
    """

    shape: CacheShape
    layers: list[Float[Tensor, "B L KK D"]]
    row_offsets: Int64[Tensor, " B"]
    lengths: Int32[Tensor, " B"]
    position_ids: Int32[Tensor, " B"]
    input_ids: Int64[Tensor, " B"]
    logits: Float32[Tensor, "B V"]
    num_active_rows: int = 0
    graphs: dict[bool, torch.cuda.CUDAGraph | None] = field(default_factory=dict)

    @classmethod
    def from_config(cls, shape: CacheShape, config: TextConfig, device: torch.device, dtype: torch.dtype) -> "KVCache":
        B, L = shape.num_rows, shape.num_slots
        size = (B, L, 2 * config.num_kv_heads, config.head_dim)
        return cls(
            shape,
            [torch.zeros(size, dtype=dtype, device=device) for _ in range(config.num_layers)],
            torch.arange(B, device=device) * L,
            torch.zeros(B, dtype=torch.int32, device=device),
            torch.zeros(B, dtype=torch.int32, device=device),
            torch.zeros(B, dtype=torch.int64, device=device),
            torch.zeros(B, config.vocab_size, device=device),
        )

    def view_slots(self, layer: int, rows: slice = slice(None)) -> Float[Tensor, "N KK D"]:
        """Every place of these rows, one after the other."""
        return self.layers[layer][rows].flatten(0, 1)
