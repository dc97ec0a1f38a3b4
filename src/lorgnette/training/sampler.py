"""The passes of every step, a pure function of its number."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorgnette.config import TrainSettings
from lorgnette.processing.packing import Share, split_into_microbatches
from lorgnette.training.epoch_order import (
    ImageGroups,
    compute_steps_per_epoch,
    select_examples,
    select_grouped_examples,
)
from lorgnette.types import Encoded, PackedBatch


@dataclass(frozen=True)
class BatchSampler:
    """groups: the examples that stay together in a step, or None where each goes its own way."""

    examples: Sequence[Encoded]
    batch_size: int
    seed: int
    groups: ImageGroups | None
    steps_per_epoch: int
    total_steps: int

    @classmethod
    def from_settings(
        cls, examples: Sequence[Encoded], settings: TrainSettings, seed: int, *, group_by_image: bool
    ) -> "BatchSampler":
        """grouped: a step takes all captions of its pictures together."""
        per_step = settings.batch_size
        epoch_steps = compute_steps_per_epoch(len(examples), per_step)
        whole = epoch_steps * settings.epochs
        total = min(whole, settings.max_steps or whole)
        return cls(
            examples,
            per_step,
            seed,
            ImageGroups.from_examples(examples) if group_by_image else None,
            epoch_steps,
            total,
        )

    def pack_step(self, step: int, max_tokens: int, prefix_sharing: Share) -> list[PackedBatch]:
        """Of step `number` (from 0), in passes of at most so many rows."""
        if self.groups is None:
            chosen = select_examples(step, len(self.examples), self.batch_size, self.seed)
        else:
            chosen = select_grouped_examples(step, self.groups, self.batch_size, self.seed)
        return split_into_microbatches([self.examples[i] for i in chosen], max_tokens, prefix_sharing=prefix_sharing)

    def first_steps(self, num_examples: int, max_tokens: int, prefix_sharing: Share) -> list[PackedBatch]:
        """Of the first steps, as many as have about so many examples: enough to know what all of them will be like."""
        steps = min(self.total_steps, max(1, num_examples // self.batch_size))
        return [batch for number in range(steps) for batch in self.pack_step(number, max_tokens, prefix_sharing)]
