"""Tile sizes of the attention kernels, by the GPU's compute capability. Needs no torch.

A card has 64 to 227 KiB of shared memory for a program, and tensor cores of its generation. Triton multiplies on those
of capability 8.0 and later. On 7.5 it multiplies with the cores for ordinary arithmetic, from registers, so the tiles
are small there. docs/kernels.md lists what the kernels need on each card.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorgnette.kernels import MAX_GROUP_SIZE
from lorgnette.types import AMPERE, TURING, Capability

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """block_m: rows of a tile, (query, head of the group) pairs that one program holds; at least MAX_GROUP_SIZE.
    block_n: keys per block. bwd_block_m: rows of a tile in the dK/dV kernel. decode_block_n: keys per block when one
    token is decoded.
    """

    block_m: int = 64
    block_n: int = 64
    bwd_block_m: int = MAX_GROUP_SIZE
    num_warps: int = 4
    num_stages: int = 2
    decode_block_n: int = 64

    def count_queries(self, group_size: int) -> int:
        """Queries per tile. group_size: query heads per key head."""
        return self.block_m // group_size


_BY_CAPABILITY: dict[Capability, AttentionTiles] = {
    TURING: AttentionTiles(block_m=32, block_n=16, num_warps=8, num_stages=1, decode_block_n=16),
    AMPERE: AttentionTiles(),
}
"""From this capability up to the next one."""


def find_tiles(capability: Capability) -> AttentionTiles:
    """The tiles of the nearest listed capability that is not above; of the first one where there is none."""
    listed = [tiles for least, tiles in _BY_CAPABILITY.items() if least <= capability]
    return listed[-1] if listed else _BY_CAPABILITY[TURING]


def select_tiles(device: "torch.device") -> AttentionTiles:
    """The tiles of a GPU. On a CPU they only shape the plan, which the reference does not read."""
    import torch

    return AttentionTiles() if device.type == "cpu" else find_tiles(torch.cuda.get_device_capability(device))


def has_tensor_cores(x: "torch.Tensor") -> bool:
    """Whether Triton multiplies matrices of this dtype on tensor cores of this GPU. fp32 would lose digits there."""
    import torch

    return x.is_cuda and x.dtype != torch.float32 and torch.cuda.get_device_capability(x.device) >= AMPERE
