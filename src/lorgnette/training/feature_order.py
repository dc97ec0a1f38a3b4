"""In which order a training needs its images, and in which groups their features are made."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from lorgnette.training.sampler import BatchSampler
from lorgnette.types import ImageGrid


def order_images(sampler: BatchSampler, first: Sequence[ImageGrid]) -> list[ImageGrid]:
    """The distinct images: `first`, then those of the examples in the order in which the first epoch uses them.

    A run that goes on in a later epoch has the same order, and so the same groups.
    """
    return list(dict.fromkeys([*first, *_find_first_steps(sampler, 0, sampler.steps_per_epoch)]))


def select_groups(
    groups: Sequence[Sequence[ImageGrid]], sampler: BatchSampler, first: Sequence[ImageGrid], start: int
) -> list[Sequence[ImageGrid]]:
    """The groups that have images of `first` or of the steps from `start` on, in the order in which they are needed.

    A group is never divided: the features of an image round otherwise in a call of the tower with other images.
    """
    per_epoch = sampler.steps_per_epoch
    all_seen = -(-start // per_epoch) * per_epoch + per_epoch  # one whole epoch has every image
    steps = _find_first_steps(sampler, start, min(all_seen, sampler.total_steps)) | dict.fromkeys(first, -1)
    needs = [min((steps[grid] for grid in group if grid in steps), default=None) for group in groups]
    needed = [(need, number) for number, need in enumerate(needs) if need is not None]
    return [groups[number] for _, number in sorted(needed)]


def _find_first_steps(sampler: BatchSampler, start: int, end: int) -> dict[ImageGrid, int]:
    """Image → the first of the steps start ≤ step < end that uses it; in the order of use."""
    chosen = [sampler.select(step) for step in range(start, end)]
    rows = sampler.sizes.select(np.fromiter(chain.from_iterable(chosen), np.int64))
    step_of_row = np.repeat(np.arange(start, end), [len(indices) for indices in chosen])
    step_of_image = np.repeat(step_of_row, np.diff(rows.image_offsets))
    _, firsts = np.unique(rows.images, return_index=True)
    firsts.sort()
    return {
        rows.grids[number]: step
        for number, step in zip(rows.images[firsts].tolist(), step_of_image[firsts].tolist(), strict=True)
    }
