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

from lorgnette.models.qwen2_vl.config import TextShape


@dataclass(frozen=True, slots=True)
class Room:
    """How many answers at once, and how many tokens of prompt and answer together."""

    rows: int
    places: int

    def padded(self) -> "Room":
        """Up to a power of two rows (8 at the least), and the next of four steps between two powers of two places."""
        step = max(64, (1 << (self.places - 1).bit_length()) // 8)
        return Room(max(8, 1 << (self.rows - 1).bit_length()), -(-self.places // step) * step)

    def holds(self, need: "Room") -> bool:
        """Whether that fits without much waste."""
        rows, places = 2 * max(need.rows, 4), 2 * max(need.places, 64)
        return need.rows <= self.rows <= rows and need.places <= self.places <= places


@dataclass(slots=True)
class Cache:
    """A room's tensors; they stay where they are, for recorded steps to find them. B rows, L places, K key heads.

    layers: [B, L, 2K, D] of each layer, a place's keys and then its values; begins: B·first place of each row;
    lengths: places filled; positions: the next token's, in all three coordinates; tokens: the last said; logits: of the
    next token; graphs: the step's recording with the adapter and without; count: rows in use.
    """

    room: Room
    layers: list[Float[Tensor, "B L KK D"]]
    begins: Int64[Tensor, " B"]
    lengths: Int32[Tensor, " B"]
    positions: Int32[Tensor, " B"]
    tokens: Int64[Tensor, " B"]
    logits: Float32[Tensor, "B V"]
    count: int = 0
    graphs: dict[bool, torch.cuda.CUDAGraph | None] = field(default_factory=dict)

    @classmethod
    def of(cls, room: Room, shape: TextShape, device: torch.device, dtype: torch.dtype) -> "Cache":
        B, L = room.rows, room.places
        size = (B, L, 2 * shape.kv_heads, shape.head_dim)
        return cls(
            room,
            [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)],
            torch.arange(B, device=device) * L,
            torch.zeros(B, dtype=torch.int32, device=device),
            torch.zeros(B, dtype=torch.int32, device=device),
            torch.zeros(B, dtype=torch.int64, device=device),
            torch.zeros(B, shape.vocab, device=device),
        )

    def places(self, layer: int, rows: slice = slice(None)) -> Float[Tensor, "N KK D"]:
        """Every place of these rows, one after the other."""
        return self.layers[layer][rows].flatten(0, 1)
