"""The stage of a training that makes image features: those of all images, or of many images those needed first."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lorgnette.config import Settings
from lorgnette.distributed import World
from lorgnette.features.decode_pool import split_into_groups
from lorgnette.features.image_features import Features
from lorgnette.features.pipeline import FeaturePipeline
from lorgnette.report.console import ProgressCallback, Terminal
from lorgnette.report.manifest import compute_sha256
from lorgnette.report.stage_timer import StageTimer
from lorgnette.training.data_module import TrainingData
from lorgnette.training.feature_order import find_first_uses, order_groups
from lorgnette.training.sampler import BatchSampler
from lorgnette.types import ImageGrid


@dataclass(frozen=True)
class FeatureStage:
    """The images of a training. extra_grids: some that are not in the data. on_image: is told of encoded images, as
    the terminal is."""

    settings: Settings
    data: TrainingData
    sampler: BatchSampler
    extra_grids: Sequence[ImageGrid]
    timer: StageTimer
    terminal: Terminal
    world: World
    on_image: ProgressCallback

    @cached_property
    def first_grids(self) -> list[ImageGrid]:
        """The images that the training needs at any step."""
        return [*self.extra_grids, *self.data.held_out.sizes.distinct_grids]

    @cached_property
    def first_uses(self) -> dict[ImageGrid, int]:
        """All images, in the order in which they are encoded, with the first step that uses each."""
        return find_first_uses(self.sampler, self.first_grids, 0)

    @cached_property
    def grids(self) -> list[ImageGrid]:
        """All images, in the order in which they are encoded."""
        return list(self.first_uses)

    def start(self, features: Features) -> None:
        """Start decoding all images."""
        if digests := self.data.map_image_digests():
            extra_paths = [grid.image.path for grid in self.extra_grids]
            digests |= {path: bytes.fromhex(compute_sha256(path)) for path in extra_paths}
        features.start_decoding(self.grids, self.world, digests)

    def start_pipeline(self, features: Features, step: int) -> FeaturePipeline:
        """Start decoding in the order of the steps; `step` is the first to come."""
        self.terminal.print(f"features   of {len(self.grids)} images, made beside the steps")
        groups = list(split_into_groups(self.grids))
        first_uses = find_first_uses(self.sampler, self.first_grids, step) if step else self.first_uses
        return FeaturePipeline(features, order_groups(groups, first_uses, self.sampler.total_steps))

    def run(self, features: Features, pipeline: FeaturePipeline | None = None) -> TrainingData:
        """Encode all images, or with a pipeline the first ones.

        Returns the data without the rows whose images cannot be decoded. Raises LorgnetteError if the settings do not
        skip them.
        """
        num_images = len(self.grids if pipeline is None else self.first_grids) - len(self.extra_grids)
        world, timer = self.world, self.timer
        with (
            timer("features"),
            world.status.phase("images"),
            self.terminal.show_progress("images", num_images) as show,
        ):
            advance = limit_progress(num_images, show, self.on_image)
            on_progress = world.share_progress(f"images on {world.machine}", advance)
            if pipeline is None:
                errors = features.prepare(self.grids, on_progress=on_progress, world=world)
                features.release_tower()
            else:
                errors = pipeline.prepare(self.first_grids, on_progress=on_progress)
            advance(num_images)  # what other ranks have made since this one was done
        timer.record("decoding", (pipeline or features.decode_pool).wait_seconds)
        return self.data.drop_images(errors, self.settings.data.on_bad_row, self.terminal)


def limit_progress(total: int, *callbacks: ProgressCallback) -> ProgressCallback:
    """Counts at most `total` for the callbacks: images that are not in the data come on top."""
    left = total

    def advance_at_most(count: int, note: str = "") -> None:
        nonlocal left
        count = min(count, left)
        left -= count
        for advance in callbacks:
            advance(count, note)

    return advance_at_most
