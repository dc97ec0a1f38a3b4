"""Groups of images are the same wherever a run goes on, and each is there before a step needs it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorgnette.config import TrainSettings
from lorgnette.features.decode_pool import split_into_groups
from lorgnette.processing.encoded_rows import EncodedRows, TextRow
from lorgnette.training.feature_order import find_first_uses, order_groups
from lorgnette.training.sampler import BatchSampler
from lorgnette.types import Example, Image, ImageGrid

GRIDS = [ImageGrid(Image(Path(f"{i}.png")), 1, 64, 64, 2) for i in range(24)]
HELD_OUT = [ImageGrid(Image(Path(f"held-out-{i}.png")), 1, 64, 64, 2) for i in range(3)]


def build_sampler(*, group_by_image: bool, epochs: int = 3) -> BatchSampler:
    """40 rows: two of each image, a few of two images, one without."""
    images = [(GRIDS[i % 20],) for i in range(36)] + [(GRIDS[20], GRIDS[21]), (GRIDS[22],), (GRIDS[23], GRIDS[0]), ()]
    rows = (
        TextRow(Example(f"{i}", (), Path("a.csv"), i), [1, 2], [], [1024 * n for n in range(len(grids))], grids)
        for i, grids in enumerate(images)
    )
    examples = EncodedRows.from_rows(rows, 0, lambda length, *_: np.zeros((3, length), np.int32))
    settings = TrainSettings(batch_size=8, epochs=epochs)
    return BatchSampler(examples, settings, seed=3, group_by_image=group_by_image)


def list_images(sampler: BatchSampler, step: int) -> list[ImageGrid]:
    grids = list(sampler.sizes.iter_grids())
    return [grid for i in sampler.select(step) for grid in grids[i]]


@pytest.mark.parametrize("group_by_image", [False, True])
def test_images_are_in_the_order_of_their_first_use(group_by_image: bool) -> None:
    sampler = build_sampler(group_by_image=group_by_image)
    used = [grid for step in range(sampler.steps_per_epoch) for grid in list_images(sampler, step)]
    steps = find_first_uses(sampler, HELD_OUT, 0)
    assert list(steps) == list(dict.fromkeys([*HELD_OUT, *used]))
    assert all(steps[grid] == -1 for grid in HELD_OUT)
    assert all(grid in list_images(sampler, steps[grid]) for grid in GRIDS)
    assert set(find_first_uses(sampler, [], 0)) == set(GRIDS)


@pytest.mark.parametrize("group_by_image", [False, True])
def test_the_steps_that_are_left_get_their_groups_in_time(group_by_image: bool) -> None:
    sampler = build_sampler(group_by_image=group_by_image)
    groups: Sequence[Any] = list(split_into_groups(list(find_first_uses(sampler, HELD_OUT, 0))))
    assert len(groups) > 5
    assert order_groups(groups, find_first_uses(sampler, HELD_OUT, 0), sampler.total_steps) == groups
    for start in range(sampler.total_steps + 1):
        chosen = order_groups(groups, find_first_uses(sampler, HELD_OUT, start), sampler.total_steps)
        assert all(group in groups for group in chosen), "undivided"
        assert len({id(group) for group in chosen}) == len(chosen)
        needed = {grid for step in range(start, sampler.total_steps) for grid in list_images(sampler, step)}
        assert all(needed.union(HELD_OUT).intersection(group) for group in chosen)
        assert needed.union(HELD_OUT) <= {grid for group in chosen for grid in group}
        done = set[ImageGrid]()
        for step in range(start, min(start + 2, sampler.total_steps)):  # each group is needed by this step or a later
            for grid in [*HELD_OUT, *list_images(sampler, step)]:
                while grid not in done:
                    group = chosen.pop(0)
                    assert set(group) & {*HELD_OUT, *list_images(sampler, step), *list_images(sampler, start)}
                    done |= set(group)
    assert order_groups(groups, find_first_uses(sampler, (), sampler.total_steps), sampler.total_steps) == []


def test_a_short_run_makes_no_more_than_it_needs() -> None:
    sampler = build_sampler(group_by_image=True)
    sampler.total_steps = 1
    groups = list(split_into_groups(list(find_first_uses(sampler, HELD_OUT, 0))))
    assert len(order_groups(groups, find_first_uses(sampler, HELD_OUT, 0), sampler.total_steps)) < len(groups)
