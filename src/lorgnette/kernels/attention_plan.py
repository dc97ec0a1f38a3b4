"""Which rows of a packed pass see which, cut up for the attention kernels.

    ends     8 8 8 8 6 6 8 8     row r is seen by the rows from r up to ends[r]: by what hangs on it in the tree
             s s s s a a b b     (encode/share.py); rows are in the tree's order, so that those are neighbours

Queries are taken some rows at a time, a *tile*; keys in *blocks* of 64. What a tile sees are mostly the blocks right
before it, and those of a beginning that many share: two runs of blocks with a gap between. What a block is seen by is
one run of queries; where it is long, as a shared beginning's is, it is parted into several *tasks*, whose sums are
added up in order. All of it is counted on the host, into as many numbers as the rows say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from lorgnette.device import copy_to_device

BLOCK_N = 64
"""Keys of a block."""
BLOCK_M = 64
"""Pairs of a query row and a head that a program takes at once, at the most."""
_TASK_QUERIES = (64, 128)
"""Queries of a task: many small tasks where rows are few, for all processors to have one."""
_MAX_TASKS_PER_BLOCK = 3
"""Tasks there is room for, for every block."""

HostTriples = Int32[np.ndarray, "_ 3"]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """rows: the row that each query stands in, ascending; ends: of every row, behind the last one that sees it (0:
    nobody does); tiles: [_, 3] blocks before the gap, in it, and seen altogether; tasks: [_, 3] block, first query,
    behind the last; task_starts: of every block."""

    query_indices: Int32[Tensor, " M"]
    visible_until: Int32[Tensor, " T"]
    query_tiles: Int32[Tensor, "_ 3"]
    dkv_tasks: Int32[Tensor, "_ 3"]
    dkv_task_offsets: Int32[Tensor, " B"]

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Tensor], prefix: str, query_indices: Int32[Tensor, " M"]
    ) -> "AttentionPlan":
        """Of what `cut` made under that prefix, and `ends`, on the device."""
        tiles, tasks, starts = (parts[f"{prefix}{name}"] for name in ("tiles", "tasks", "task_starts"))
        return cls(query_indices, parts["ends"], tiles.view(-1, 3), tasks.view(-1, 3), starts)

    @classmethod
    def from_numpy(
        cls,
        query_indices: Int32[np.ndarray, " M"],
        visible_until: Int32[np.ndarray, " T"],
        group_size: int,
        device: torch.device,
    ) -> "AttentionPlan":
        numbers = {
            "rows": query_indices,
            "ends": visible_until,
            **plan_attention("", query_indices, visible_until, group_size),
        }
        flat = copy_to_device(np.concatenate(list(numbers.values())), device)
        parts = dict(zip(numbers, torch.split(flat, list(map(len, numbers.values()))), strict=True))
        return cls.from_parts(parts, "", parts["rows"])


def count_tile_queries(group_size: int) -> int:
    """group: query heads that look at one key head."""
    return BLOCK_M // group_size


def compute_plan_sizes(prefix: str, num_tokens: int, num_queries: int, group_size: int) -> dict[str, int]:
    """How many numbers `cut` makes of each kind."""
    blocks = -(-num_tokens // BLOCK_N)
    tiles = -(-num_queries // count_tile_queries(group_size))
    return {
        f"{prefix}tiles": 3 * tiles,
        f"{prefix}tasks": 3 * _MAX_TASKS_PER_BLOCK * blocks,
        f"{prefix}task_starts": blocks + 1,
    }


def plan_attention(
    prefix: str, query_indices: Int32[np.ndarray, " M"], visible_until: Int32[np.ndarray, " T"], group_size: int
) -> dict[str, Int32[np.ndarray, " _"]]:
    """The tiles, tasks and their starts as they are sent: one number after the other."""
    tasks, starts = plan_dkv_tasks(query_indices, visible_until)
    tiles = plan_query_tiles(query_indices, visible_until, group_size)
    return {f"{prefix}tiles": tiles.ravel(), f"{prefix}tasks": tasks.ravel(), f"{prefix}task_starts": starts}


def plan_query_tiles(
    query_indices: Int32[np.ndarray, " M"], visible_until: Int32[np.ndarray, " T"], group_size: int
) -> HostTriples:
    """Of every tile the widest gap among the blocks it sees is left out."""
    until, queries = _reduce_visible_until(visible_until), count_tile_queries(group_size)
    first, last = (
        query_indices[::queries],
        query_indices[np.minimum(np.arange(queries, len(query_indices) + queries, queries), len(query_indices)) - 1],
    )
    block = np.arange(len(until), dtype=np.int32)
    seen = (block * BLOCK_N <= last[:, None]) & (until > first[:, None])
    so_far = np.maximum.accumulate(np.where(seen, block, -1), 1)
    before = np.concatenate([np.full((len(first), 1), -1), so_far[:, :-1]], 1)
    gaps = np.where(seen, block - 1 - before, 0)
    behind = gaps.argmax(1)
    gap = gaps[np.arange(len(gaps)), behind]
    count = np.where(seen.any(1), so_far[:, -1] + 1 - gap, 0)
    return np.stack([behind - gap, gap, count], 1).astype(np.int32)


def plan_dkv_tasks(
    query_indices: Int32[np.ndarray, " M"], visible_until: Int32[np.ndarray, " T"]
) -> tuple[HostTriples, Int32[np.ndarray, " B"]]:
    """(tasks, their starts by block). Tasks that there is room for and that are not needed have no queries."""
    until = _reduce_visible_until(visible_until)
    first = np.searchsorted(query_indices, np.arange(len(until)) * BLOCK_N)
    length = np.maximum(np.searchsorted(query_indices, until) - first, 0)
    room, total = _MAX_TASKS_PER_BLOCK * len(until), int(length.sum())
    part = max(min(max(total // 64, _TASK_QUERIES[0]), _TASK_QUERIES[1]), -(-total // (room - len(until))))
    counts = -(-length // part)
    starts = np.concatenate([[0], np.cumsum(counts)])
    block = np.repeat(np.arange(len(until)), counts)
    begin = first[block] + (np.arange(len(block)) - starts[block]) * part
    tasks = np.zeros((room, 3), np.int32)
    tasks[: len(block)] = np.stack([block, begin, np.minimum(begin + part, (first + length)[block])], 1)
    return tasks, starts.astype(np.int32)


def _reduce_visible_until(visible_until: Int32[np.ndarray, " T"]) -> Int32[np.ndarray, " blocks"]:
    """Of every block, behind the last row that sees any of it."""
    return np.maximum.reduceat(visible_until, np.arange(0, len(visible_until), BLOCK_N))
