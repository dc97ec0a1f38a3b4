"""The attention mask of a packed batch, cut into work for the attention kernels.

The mask is one integer per token: key k is visible to the queries k ≤ q < visible_until[k]. Tokens are in the
depth-first order of the prefix tree (processing/prefix_tree.py), so these queries are contiguous. A shared prefix s
with two branches:

    token           s s s s a a b b
    visible_until   8 8 8 8 6 6 8 8         8 = everybody behind; a ends at 6, so b does not see it; 0 hides a key

The forward pass and dQ loop over keys: a *query tile* lists the key blocks (BLOCK_N keys each) that some queries need.
They are mostly the blocks right before the tile and those of a prefix that many share, so one skipped range is enough.
dK and dV loop over queries: a *task* is one key block with a range of the queries that see it. A long range, as a
shared prefix has, is split into several tasks, whose sums are added in order. The host plans all of this with numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from lorgnette.device import copy_to_device, join_arrays, split_array
from lorgnette.kernels.tiles import AttentionTiles, select_tiles

_TASK_QUERIES = (64, 128)
"""Smallest and usual largest number of queries per task: small where tokens are few, to occupy all processors."""
_MAX_TASKS_PER_BLOCK = 3
"""On average; the rest of the task list stays empty."""
_PARTS = ("query_tiles", "dkv_tasks", "dkv_task_offsets")
HostTriples = Int32[np.ndarray, "_ 3"]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The mask of M queries over T keys, on the device.

    query_indices: token index of each query, ascending. visible_until: see above. query_tiles [n, 3]: key blocks before
    the skipped range, length of the range, blocks visited in all. dkv_tasks [n, 3]: key block, first query, end query.
    dkv_task_offsets: key block b has the tasks from offsets[b] up to offsets[b + 1]. tiles: what the plan was made for.
    """

    query_indices: Int32[Tensor, " M"]
    visible_until: Int32[Tensor, " T"]
    query_tiles: Int32[Tensor, "_ 3"]
    dkv_tasks: Int32[Tensor, "_ 3"]
    dkv_task_offsets: Int32[Tensor, " B"]
    tiles: AttentionTiles

    @classmethod
    def from_parts(
        cls, parts: Mapping[str, Tensor], prefix: str, query_indices: Int32[Tensor, " M"], tiles: AttentionTiles
    ) -> "AttentionPlan":
        """From the tensors that `plan_attention` named with this prefix, and `visible_until`."""
        query_tiles, tasks, offsets = (parts[f"{prefix}{name}"] for name in _PARTS)
        until = parts["visible_until"]
        return cls(query_indices, until, query_tiles.view(-1, 3), tasks.view(-1, 3), offsets, tiles)

    @classmethod
    def from_numpy(
        cls,
        query_indices: Int32[np.ndarray, " M"],
        visible_until: Int32[np.ndarray, " T"],
        group_size: int,
        device: torch.device,
        tiles: AttentionTiles | None = None,
    ) -> "AttentionPlan":
        """Plan on the host and send everything in one copy. tiles: None: those of the device."""
        tiles = tiles or select_tiles(device)
        arrays = {"query_indices": query_indices, "visible_until": visible_until}
        arrays |= plan_attention("", query_indices, visible_until, group_size, tiles)
        joined = copy_to_device(join_arrays(arrays.values()), device)
        parts = dict(zip(arrays, split_array(joined, map(len, arrays.values())), strict=True))
        return cls.from_parts(parts, "", parts["query_indices"], tiles)


def plan_attention(
    prefix: str,
    query_indices: Int32[np.ndarray, " M"],
    visible_until: Int32[np.ndarray, " T"],
    group_size: int,
    tiles: AttentionTiles,
) -> dict[str, Int32[np.ndarray, " _"]]:
    """Query tiles, tasks and task offsets, flattened to be sent; names start with `prefix`.

    group_size: query heads per key head. The number of integers depends on M, T and the tiles alone.
    """
    tasks, offsets = plan_dkv_tasks(query_indices, visible_until, tiles)
    arrays = plan_query_tiles(query_indices, visible_until, group_size, tiles).ravel(), tasks.ravel(), offsets
    return {f"{prefix}{name}": array for name, array in zip(_PARTS, arrays, strict=True)}


def plan_query_tiles(
    query_indices: Int32[np.ndarray, " M"],
    visible_until: Int32[np.ndarray, " T"],
    group_size: int,
    tiles: AttentionTiles,
) -> HostTriples:
    """Each tile skips the widest gap between the key blocks it needs."""
    until, queries = _reduce_visible_until(visible_until, tiles), tiles.count_queries(group_size)
    first = query_indices[::queries]
    last_of_tile = np.arange(queries, len(query_indices) + queries, queries)
    last = query_indices[np.minimum(last_of_tile, len(query_indices)) - 1]
    block = np.arange(len(until), dtype=np.int32)
    needed = (block * tiles.block_n <= last[:, None]) & (until > first[:, None])
    # The needed block before each needed block gives the gap in front of it; argmax finds the widest one.
    latest = np.maximum.accumulate(np.where(needed, block, -1), 1)
    previous = np.concatenate([np.full((len(first), 1), -1), latest[:, :-1]], 1)
    gaps = np.where(needed, block - 1 - previous, 0)
    gap_end = gaps.argmax(1)
    gap = gaps[np.arange(len(gaps)), gap_end]
    visited = np.where(needed.any(1), latest[:, -1] + 1 - gap, 0)
    return np.stack([gap_end - gap, gap, visited], 1).astype(np.int32)


def plan_dkv_tasks(
    query_indices: Int32[np.ndarray, " M"], visible_until: Int32[np.ndarray, " T"], tiles: AttentionTiles
) -> tuple[HostTriples, Int32[np.ndarray, " B"]]:
    """(tasks, their offsets by key block). Unused tasks at the end of the list have no queries."""
    until = _reduce_visible_until(visible_until, tiles)
    first = np.searchsorted(query_indices, np.arange(len(until)) * tiles.block_n)
    length = np.maximum(np.searchsorted(query_indices, until) - first, 0)
    capacity, total = _MAX_TASKS_PER_BLOCK * len(until), int(length.sum())
    # About 64 tasks, none too short or too long, unless the list has no room for that many.
    size = max(min(max(total // 64, _TASK_QUERIES[0]), _TASK_QUERIES[1]), -(-total // (capacity - len(until))))
    counts = -(-length // size)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    block = np.repeat(np.arange(len(until)), counts)
    start = first[block] + (np.arange(len(block)) - offsets[block]) * size
    tasks = np.zeros((capacity, 3), np.int32)
    tasks[: len(block)] = np.stack([block, start, np.minimum(start + size, (first + length)[block])], 1)
    return tasks, offsets.astype(np.int32)


def _reduce_visible_until(
    visible_until: Int32[np.ndarray, " T"], tiles: AttentionTiles
) -> Int32[np.ndarray, " blocks"]:
    """The largest value of each key block."""
    return np.maximum.reduceat(visible_until, np.arange(0, len(visible_until), tiles.block_n))
