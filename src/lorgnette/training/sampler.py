"""The passes of every step, a pure function of its number."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorgnette.config import Train
from lorgnette.processing.packing import Share, passes
from lorgnette.training.epoch_order import Groups, grouped_members, members, steps_in_epoch
from lorgnette.types import Encoded, PackedBatch


@dataclass(frozen=True)
class Batches:
    """groups: the examples that stay together in a step, or None where each goes its own way."""

    examples: Sequence[Encoded]
    per_step: int
    seed: int
    groups: Groups | None
    epoch_steps: int
    total: int

    @classmethod
    def of(cls, examples: Sequence[Encoded], train: Train, seed: int, *, grouped: bool) -> "Batches":
        """grouped: a step takes all captions of its pictures together."""
        per_step = train.batch_size * train.accumulation
        epoch_steps = steps_in_epoch(len(examples), per_step)
        whole = epoch_steps * train.epochs
        total = min(whole, train.max_steps or whole)
        return cls(examples, per_step, seed, Groups.by_picture(examples) if grouped else None, epoch_steps, total)

    def step(self, number: int, most_tokens: int, share: Share) -> list[PackedBatch]:
        """Of step `number` (from 0), in passes of at most so many rows."""
        if self.groups is None:
            chosen = members(number, len(self.examples), self.per_step, self.seed)
        else:
            chosen = grouped_members(number, self.groups, self.per_step, self.seed)
        return passes([self.examples[i] for i in chosen], most_tokens, share=share)

    def coming(self, examples: int, most_tokens: int, share: Share) -> list[PackedBatch]:
        """Of the first steps, as many as have about so many examples: enough to know what all of them will be like."""
        steps = min(self.total, max(1, examples // self.per_step))
        return [batch for number in range(steps) for batch in self.step(number, most_tokens, share)]
