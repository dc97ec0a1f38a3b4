"""In which order a training needs its images, and in which groups their features are made."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from lorgnette.training.sampler import BatchSampler
from lorgnette.types import ImageGrid


def find_first_uses(sampler: BatchSampler, first: Sequence[ImageGrid], start: int) -> dict[ImageGrid, int]:
    """Image → the first step from `start` on that uses it, in the order of use. `first` come first, and have step −1.

    It ends with the first whole epoch, which has every image; this may be beyond the last step of the training. From
    step 0 on it is the order of encoding: a run that goes on later has the same, and so the same groups.
    """
    per_epoch = sampler.steps_per_epoch
    steps = range(start, -(-start // per_epoch) * per_epoch + per_epoch)
    chosen = [sampler.select(step) for step in steps]
    rows = sampler.sizes.select(np.fromiter(chain.from_iterable(chosen), np.int64))
    step_of_row = np.repeat(np.array(steps), [len(indices) for indices in chosen])
    step_of_image = np.repeat(step_of_row, np.diff(rows.image_offsets))
    _, firsts = np.unique(rows.images, return_index=True)
    firsts.sort()
    uses = dict.fromkeys(first, -1)
    for number, step in zip(rows.images[firsts].tolist(), step_of_image[firsts].tolist(), strict=True):
        uses.setdefault(rows.grids[number], step)
    return uses


def order_groups(
    groups: Sequence[Sequence[ImageGrid]], first_uses: Mapping[ImageGrid, int], end: int
) -> list[Sequence[ImageGrid]]:
    """The groups with an image that a step before `end` needs, in the order in which they are needed.

    first_uses: from `find_first_uses`. A group is never divided: the features of an image round otherwise in a call of
    the tower with other images.
    """
    needs = [min(first_uses.get(grid, end) for grid in group) for group in groups]
    needed = [(need, number) for number, need in enumerate(needs) if need < end]
    return [groups[number] for _, number in sorted(needed)]
