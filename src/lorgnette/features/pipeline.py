"""Makes the image features of a long training beside its steps, so that the first step need not wait for all of them.

    threads   decode a few groups ahead of the tower ────────────────────────────────────▶
    main      tower, group 7 ─ step 4 ─ tower, group 8 ─ tower, group 9 ─ step 5 ─ …

One thread launches tower and steps, on one stream. So a step's features are computed before it, and the host does not
wait for the device. A group is one call of the tower. The groups do not depend on what is made when: features that are
all made before the first step have the same bits.
"""

from collections.abc import Callable, Iterable, Sequence

from lorgnette.errors import LorgnetteError
from lorgnette.features.decode_pool import DecodePool
from lorgnette.features.image_features import Features
from lorgnette.types import ImageGrid


class FeaturePipeline:
    """Makes groups of images in the order given, when a step asks for their features. Decoding starts at once."""

    def __init__(self, features: Features, groups: Sequence[Sequence[ImageGrid]]) -> None:
        """groups: each for one call of the tower, in the order of their use."""
        self._features, self._num_left = features, len(groups)
        self._pool = DecodePool(features.image_processor)
        self._loading = features.load_groups(groups, self._pool)
        self._errors: dict[ImageGrid, LorgnetteError] = {}

    @property
    def wait_seconds(self) -> float:
        """How long `prepare` waited for pixels."""
        return self._pool.wait_seconds

    def prepare(
        self, grids: Iterable[ImageGrid], *, on_progress: Callable[[int], None] = lambda count: None
    ) -> dict[ImageGrid, LorgnetteError]:
        """Make the features that these images lack: their groups, and all groups before.

        grids: of the groups, or prepared before. on_progress(n) is called after n more images. Returns those of these
        images that cannot be decoded, with the errors.
        """
        wanted = list(dict.fromkeys(grids))
        missing = {grid for grid in wanted if grid not in self._errors and grid not in self._features}
        while missing:
            group = next(self._loading, None)
            assert group is not None, "an image that is in none of the groups"
            self._errors |= self._features.add_group(group)
            missing.difference_update(group)
            self._num_left -= 1
            on_progress(len(group))
            if self._num_left == 0:
                self._features.release_tower()
        return {grid: self._errors[grid] for grid in wanted if grid in self._errors}

    def close(self) -> None:
        """End decoding, also where no step has asked for all images."""
        self._pool.close()
