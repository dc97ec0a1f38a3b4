"""No tile leaves out a block that it sees, and every key's queries are in exactly one of its block's tasks."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.kernels.attention_plan import (
    BLOCK_N,
    compute_plan_sizes,
    count_tile_queries,
    plan_attention,
    plan_dkv_tasks,
    plan_query_tiles,
)
from lorgnette.models.qwen2_vl.config import MAX_GROUP_SIZE


def seen_by(rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """[M, T]: the definition."""
    keys = np.arange(len(ends))
    return (keys <= rows[:, None]) & (rows[:, None] < ends)


def grown(branches: Sequence[tuple[int, int]], padding: int = 0) -> np.ndarray:
    """ends of a tree that is walked through: (rows in common with the branch before, rows added) of each branch."""
    total = 0
    ends = np.zeros(sum(added for _, added in branches) + padding, np.int32)
    path: list[int] = []
    for shared, added in branches:
        for row in path[shared:]:
            ends[row] = total
        path = path[:shared] + list(range(total, total + added))
        total += added
    for row in path:
        ends[row] = total
    return ends


TREES = st.lists(st.tuples(st.integers(0, 250), st.integers(0, 150)), min_size=1, max_size=12).filter(
    lambda branches: any(added for _, added in branches)
)
GROUPS = st.sampled_from([1, 4, 6, 7, 32])


def queries(ends: np.ndarray, keep: int) -> np.ndarray:
    return np.arange(0, len(ends), keep, dtype=np.int32)


def missing(rows: np.ndarray, ends: np.ndarray, group: int, tiles: np.ndarray) -> int:
    """Blocks that a tile sees something of and leaves out."""
    seen, size, count = seen_by(rows, ends), count_tile_queries(group), 0
    for number, (before, gap, blocks) in enumerate(tiles.tolist()):
        looked_at = {i if i < before else i + gap for i in range(blocks)}
        needed = np.flatnonzero(seen[number * size : (number + 1) * size].any(0)) // BLOCK_N
        count += len(set(needed.tolist()) - looked_at)
    return count


@given(branches=TREES, group=GROUPS, keep=st.integers(1, 9), padding=st.integers(0, 70))
def test_a_tile_looks_at_every_block_it_sees(
    branches: list[tuple[int, int]], group: int, keep: int, padding: int
) -> None:
    ends = grown(branches, padding)
    rows = queries(ends, keep)
    tiles = plan_query_tiles(rows, ends, group)
    assert missing(rows, ends, group, tiles) == 0
    assert (tiles >= 0).all()
    whole = missing(rows, ends, group, tiles * [1, 1, 0])
    assert tiles[:, 2].sum() >= whole > 0  # the comparison can fail: a tile that looks at nothing leaves out something


@given(branches=TREES, keep=st.integers(1, 9), padding=st.integers(0, 70))
def test_a_key_is_seen_in_one_task_of_its_block(branches: list[tuple[int, int]], keep: int, padding: int) -> None:
    ends = grown(branches, padding)
    rows = queries(ends, keep)
    tasks, starts = plan_dkv_tasks(rows, ends)
    times = np.zeros((len(rows), len(ends)), int)
    for block, (first, end) in enumerate(pairwise(starts)):
        for number, begin, behind in tasks[first:end]:
            assert number == block
            assert begin < behind
            times[begin:behind, block * BLOCK_N : (block + 1) * BLOCK_N] += 1
    assert (times[seen_by(rows, ends)] == 1).all()
    assert times.max() == 1
    assert (tasks[starts[-1] :] == 0).all()


@given(branches=TREES, group=GROUPS, keep=st.integers(1, 9))
def test_the_numbers_are_as_many_as_the_rows_say(branches: list[tuple[int, int]], group: int, keep: int) -> None:
    ends = grown(branches)
    made = plan_attention("a_", queries(ends, keep), ends, group)
    assert {name: len(values) for name, values in made.items()} == compute_plan_sizes(
        "a_", len(ends), -(-len(ends) // keep), group
    )
    assert {values.dtype for values in made.values()} == {np.dtype(np.int32)}


def test_captions_far_behind_a_shared_beginning_skip_what_is_between() -> None:
    """20 rows that all see, then 40 pictures of 130 rows: a tile looks at the beginning and its own picture."""
    ends = grown([(0, 150), *[(20, 130)] * 39])
    tiles = plan_query_tiles(np.arange(len(ends), dtype=np.int32), ends, 6)
    assert len(ends) // BLOCK_N > 80
    assert tiles[:, 2].max() <= 5
    assert tiles[-1, 0] == 1
    assert tiles[-1, 1] > 70


def test_a_beginning_that_all_see_is_parted() -> None:
    ends = grown([(0, 150), *[(20, 130)] * 39])
    tasks, starts = plan_dkv_tasks(np.arange(len(ends), dtype=np.int32), ends)
    lengths = tasks[:, 2] - tasks[:, 1]
    assert starts[1] > 20
    assert lengths.max() < 400
    assert lengths[: starts[1]].sum() == len(ends)


def test_a_tile_has_room_for_all_heads_of_a_query() -> None:
    assert all(count_tile_queries(group) >= 1 for group in range(1, MAX_GROUP_SIZE + 1))
