"""Tiles visit every key block they need, and each query of a key block is in exactly one of its tasks."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.kernels.attention_plan import plan_attention, plan_dkv_tasks, plan_query_tiles
from lorgnette.kernels.tiles import AttentionTiles, find_tiles

SMALL_TILES, LARGE_TILES = find_tiles((7, 5)), find_tiles((9, 0))


def build_dense_mask(query_indices: np.ndarray, visible_until: np.ndarray) -> np.ndarray:
    """[M, T]: the mask by definition."""
    keys = np.arange(len(visible_until))
    return (keys <= query_indices[:, None]) & (query_indices[:, None] < visible_until)


def make_tree(branches: Sequence[tuple[int, int]], padding: int = 0) -> np.ndarray:
    """visible_until of a prefix tree, by branch: (tokens shared with the branch before, tokens added)."""
    total = 0
    visible_until = np.zeros(sum(added for _, added in branches) + padding, np.int32)
    path: list[int] = []
    for shared, added in branches:
        for row in path[shared:]:
            visible_until[row] = total
        path = path[:shared] + list(range(total, total + added))
        total += added
    for row in path:
        visible_until[row] = total
    return visible_until


TREES = st.lists(st.tuples(st.integers(0, 250), st.integers(0, 150)), min_size=1, max_size=12).filter(
    lambda branches: any(added for _, added in branches)
)
GROUPS = st.sampled_from([1, 4, 6, 7, 32])
TILES = st.sampled_from([SMALL_TILES, LARGE_TILES])


def take_queries(visible_until: np.ndarray, stride: int) -> np.ndarray:
    return np.arange(0, len(visible_until), stride, dtype=np.int32)


def count_missing_blocks(
    query_indices: np.ndarray, visible_until: np.ndarray, group_size: int, tiles: AttentionTiles, planned: np.ndarray
) -> int:
    """Key blocks that a tile needs and does not visit."""
    mask, tile_size, count = build_dense_mask(query_indices, visible_until), tiles.count_queries(group_size), 0
    for tile, (before, gap, blocks) in enumerate(planned.tolist()):
        visited = {i if i < before else i + gap for i in range(blocks)}
        needed = np.flatnonzero(mask[tile * tile_size : (tile + 1) * tile_size].any(0)) // tiles.block_n
        count += len(set(needed.tolist()) - visited)
    return count


@given(branches=TREES, group_size=GROUPS, stride=st.integers(1, 9), padding=st.integers(0, 70), tiles=TILES)
def test_a_tile_visits_every_block_it_needs(
    branches: list[tuple[int, int]], group_size: int, stride: int, padding: int, tiles: AttentionTiles
) -> None:
    visible_until = make_tree(branches, padding)
    query_indices = take_queries(visible_until, stride)
    planned = plan_query_tiles(query_indices, visible_until, group_size, tiles)
    assert count_missing_blocks(query_indices, visible_until, group_size, tiles, planned) == 0
    assert (planned >= 0).all()
    missing = count_missing_blocks(query_indices, visible_until, group_size, tiles, planned * [1, 1, 0])
    assert planned[:, 2].sum() >= missing > 0  # negative control: tiles that visit nothing


@given(branches=TREES, stride=st.integers(1, 9), padding=st.integers(0, 70), tiles=TILES)
def test_every_query_is_in_one_task_of_a_key_block(
    branches: list[tuple[int, int]], stride: int, padding: int, tiles: AttentionTiles
) -> None:
    visible_until = make_tree(branches, padding)
    query_indices = take_queries(visible_until, stride)
    tasks, offsets = plan_dkv_tasks(query_indices, visible_until, tiles)
    visits = np.zeros((len(query_indices), len(visible_until)), int)
    for block, (first, stop) in enumerate(pairwise(offsets)):
        for task_block, start, end in tasks[first:stop]:
            assert task_block == block
            assert start < end
            visits[start:end, block * tiles.block_n : (block + 1) * tiles.block_n] += 1
    assert (visits[build_dense_mask(query_indices, visible_until)] == 1).all()
    assert visits.max() == 1
    assert (tasks[offsets[-1] :] == 0).all()


@given(branches=TREES, group_size=GROUPS, stride=st.integers(1, 9), tiles=TILES)
def test_the_plan_size_depends_only_on_the_counts(
    branches: list[tuple[int, int]], group_size: int, stride: int, tiles: AttentionTiles
) -> None:
    """As the static inputs of a CUDA graph need; their sizes come from a plan in which every token is hidden."""
    visible_until = make_tree(branches)
    queries = take_queries(visible_until, stride)
    parts = plan_attention("a_", queries, visible_until, group_size, tiles)
    hidden = plan_attention("a_", np.zeros_like(queries), np.zeros_like(visible_until), group_size, tiles)
    assert {name: len(values) for name, values in parts.items()} == {n: len(values) for n, values in hidden.items()}
    assert {values.dtype for values in parts.values()} == {np.dtype(np.int32)}


def test_captions_far_behind_a_shared_prefix_skip_the_keys_between() -> None:
    """A prefix of 20 tokens, then 40 images of 130: a tile visits the prefix and its own image."""
    visible_until = make_tree([(0, 150), *[(20, 130)] * 39])
    tiles = plan_query_tiles(np.arange(len(visible_until), dtype=np.int32), visible_until, 6, LARGE_TILES)
    assert len(visible_until) // LARGE_TILES.block_n > 80
    assert tiles[:, 2].max() <= 5
    assert tiles[-1, 0] == 1
    assert tiles[-1, 1] > 70


def test_a_shared_prefix_is_split_into_tasks() -> None:
    visible_until = make_tree([(0, 150), *[(20, 130)] * 39])
    tasks, offsets = plan_dkv_tasks(np.arange(len(visible_until), dtype=np.int32), visible_until, LARGE_TILES)
    lengths = tasks[:, 2] - tasks[:, 1]
    assert offsets[1] > 20
    assert lengths.max() < 400
    assert lengths[: offsets[1]].sum() == len(visible_until)
