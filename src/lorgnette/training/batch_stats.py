"""Counts tokens, steps and micro-batches of a training, and compares ways to batch its examples. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Int32

from lorgnette.processing.prefix_tree import PrefixTree
from lorgnette.training.sampler import BatchSampler

MAX_SAMPLED_STEPS, MAX_SAMPLED_EXAMPLES = 256, 8192
"""Limits of the steps that are packed: of a longer epoch, as many at even distances. A training also packs them, before
its first step, in at most 0.4 s."""


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Tokens per example. histogram: (first, last, number of examples) per bar, both ends included."""

    min: int
    median: int
    p95: int
    max: int
    histogram: tuple[tuple[int, int, int], ...]

    @classmethod
    def from_lengths(cls, lengths: Sequence[int] | Int32[np.ndarray, " N"], num_bars: int = 8) -> "TokenLengths":
        values = np.sort(np.asarray(lengths))
        first, last = int(values[0]), int(values[-1])
        width = -(-(last - first + 1) // num_bars)
        histogram = tuple(
            (start, start + width - 1, int(((values >= start) & (values < start + width)).sum()))
            for start in range(first, last + 1, width)
        )
        median, p95 = (int(np.quantile(values, q, method="higher")) for q in (0.5, 0.95))
        return cls(first, median, p95, last, histogram)


@dataclass(frozen=True, slots=True)
class EpochTokens:
    """Tokens that one epoch computes under each way to batch it.

    padded: the examples of a step, each padded to the longest; packed: without padding and without tokens behind the
    last label; prefix_shared: also common prefixes of a micro-batch only once; grouped_by_image: also all captions of
    an image in one step, which is another order of examples.
    """

    padded: int
    packed: int
    prefix_shared: int
    grouped_by_image: int


@dataclass(frozen=True, slots=True)
class StepStats:
    """The steps of a run. num_microbatches, tokens and labels are of all steps, projected from num_sampled of them.

    largest_microbatch: its tokens and labels. tokens_per_step: of a step that is not the last of an epoch, where fewer
    examples are left. With several ranks the micro-batches are those of all.
    """

    total_steps: int
    steps_per_epoch: int
    num_sampled: int
    num_microbatches: int
    tokens: int
    labels: int
    largest_microbatch: tuple[int, int]
    tokens_per_step: int


def count_steps(sampler: BatchSampler, max_tokens: int, *, prefix_sharing: bool, num_ranks: int = 1) -> StepStats:
    """Pack the steps of the first epoch, each dealt to num_ranks, and project them to the whole run."""
    steps = _sample_steps(min(sampler.steps_per_epoch, sampler.total_steps), sampler.batch_size)
    trees = (tree for step in steps for tree in _pack(sampler, step, max_tokens, prefix_sharing, num_ranks))
    sizes = [(tree.num_tokens, tree.num_labels) for tree in trees]
    scale = sampler.total_steps / len(steps)
    microbatches, tokens, labels = (round(count * scale) for count in (len(sizes), *map(sum, zip(*sizes, strict=True))))
    num_examples = len(sampler.examples)
    full = sampler.steps_per_epoch * min(sampler.batch_size, num_examples) / num_examples  # beside a step's mean
    return StepStats(
        sampler.total_steps, sampler.steps_per_epoch, len(steps), microbatches, tokens, labels, max(sizes),
        tokens_per_step=round(tokens / sampler.total_steps * full),
    )  # fmt: skip


def compare_layouts(sampler: BatchSampler, grouped: BatchSampler, max_tokens: int) -> EpochTokens:
    """grouped: the sampler that keeps the captions of an image together."""
    steps, totals = _sample_steps(sampler.steps_per_epoch, sampler.batch_size), np.zeros(4)
    for step in steps:
        lengths = sampler.sizes.lengths[sampler.select(step)].tolist()
        packed, prefix_shared, grouped_by_image = (
            sum(tree.num_tokens for tree in _pack(layout, step, max_tokens, prefix_sharing))
            for layout, prefix_sharing in ((sampler, False), (sampler, True), (grouped, True))
        )
        totals += len(lengths) * max(lengths), packed, prefix_shared, grouped_by_image
    return EpochTokens(*(round(tokens) for tokens in totals * (sampler.steps_per_epoch / len(steps))))


def _pack(
    sampler: BatchSampler, step: int, max_tokens: int, prefix_sharing: bool, num_ranks: int = 1
) -> list[PrefixTree]:
    """The micro-batches of a step, of all ranks, without their arrays."""
    ranks = sampler.build_trees(step, max_tokens, prefix_sharing=prefix_sharing, num_ranks=num_ranks)
    return list(chain.from_iterable(ranks))


def _sample_steps(num_steps: int, batch_size: int) -> list[int]:
    count = min(num_steps, MAX_SAMPLED_STEPS, max(1, MAX_SAMPLED_EXAMPLES // batch_size))
    return [i * num_steps // count for i in range(count)]
