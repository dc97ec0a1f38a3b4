"""What the ranks tell each other in a step: numbers behind the gradient, summed by the same all-reduce.

    tail  | loss | labels | ranks that stop | ranks out of memory | … | tokens of each rank | seconds each rank waited |

A sum of places that only one rank fills is a list of their values. Beyond `NUM_PLACES` ranks some share a place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.distributed import TAIL

LOSS, NUM_LABELS, NUM_STOPPING, NUM_OUT_OF_MEMORY = range(4)
NUM_PLACES = (TAIL - 8) // 2
_TOKENS, _SECONDS = slice(-2 * NUM_PLACES, -NUM_PLACES), slice(-NUM_PLACES, None)


@dataclass(frozen=True, slots=True)
class RankCounts:
    """One rank's part of a step. is_out_of_memory: it has halved its micro-batches."""

    num_labels: int
    num_tokens: int
    wait_seconds: float
    is_stopping: bool
    is_out_of_memory: bool

    def write(self, tail: Float32[Tensor, " n"], loss: Float[Tensor, ""], rank: int) -> None:
        """Fill the tail. The host does not wait for it."""
        values = torch.zeros(TAIL, pin_memory=tail.is_cuda)
        values[NUM_LABELS] = self.num_labels
        values[NUM_STOPPING] = self.is_stopping
        values[NUM_OUT_OF_MEMORY] = self.is_out_of_memory
        values[_TOKENS][rank % NUM_PLACES] = self.num_tokens
        values[_SECONDS][rank % NUM_PLACES] = self.wait_seconds
        tail.copy_(values, non_blocking=True)
        tail[LOSS].copy_(loss)


@dataclass(frozen=True, slots=True)
class StepCounts:
    """A step of all ranks. busiest_tokens: of the rank with the most; wait_seconds: of the one that waited longest."""

    num_labels: int
    num_tokens: int
    busiest_tokens: float
    wait_seconds: float
    is_stopping: bool
    is_out_of_memory: bool

    @classmethod
    def from_tail(cls, tail: Sequence[float], num_ranks: int) -> "StepCounts":
        """tail: the sum over the ranks. Of ranks that share a place, the mean counts."""
        shares = [len(range(place, num_ranks, NUM_PLACES)) for place in range(min(num_ranks, NUM_PLACES))]

        def find_largest(places: slice) -> float:
            return max(value / share for value, share in zip(tail[places], shares, strict=False))

        return cls(
            num_labels=round(tail[NUM_LABELS]), num_tokens=round(sum(tail[_TOKENS])),
            busiest_tokens=find_largest(_TOKENS), wait_seconds=find_largest(_SECONDS),
            is_stopping=tail[NUM_STOPPING] > 0, is_out_of_memory=tail[NUM_OUT_OF_MEMORY] > 0,
        )  # fmt: skip
