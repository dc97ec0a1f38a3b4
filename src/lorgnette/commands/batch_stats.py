"""What a training's examples come to: tokens, steps, passes, and the rows that each way of laying them out computes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorgnette.config import TrainSettings
from lorgnette.processing.packing import build_prefix_trees
from lorgnette.processing.prefix_tree import PrefixTree, Share
from lorgnette.training.epoch_order import (
    ImageGroups,
    compute_steps_per_epoch,
    select_examples,
    select_grouped_examples,
)
from lorgnette.types import Encoded

MAX_SAMPLED_STEPS = 256
"""Steps of an epoch that are laid out; of a longer one, so many evenly spread."""


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Of an example."""

    min: int
    median: int
    p95: int
    max: int
    histogram: tuple[tuple[int, int, int], ...]
    """(from, to, how many), both ends included."""

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], num_bars: int = 8) -> "TokenLengths":
        found = np.sort(np.asarray(lengths))
        width = -(-int(found[-1] - found[0] + 1) // num_bars)
        borders = range(int(found[0]), int(found[-1]) + 1, width)
        counted = tuple((at, at + width - 1, int(((found >= at) & (found < at + width)).sum())) for at in borders)
        median, p95 = (int(np.quantile(found, q, method="higher")) for q in (0.5, 0.95))
        return cls(int(found[0]), median, p95, int(found[-1]), counted)


@dataclass(frozen=True, slots=True)
class EpochTokens:
    """Rows that one epoch computes, as each way of laying it out has it.

    padded: micro-batches of `batch_size`, each as long as its longest; packed: no padding, and nothing behind the last
    label; shared: what any two examples of a pass begin with once; grouped: the same, the captions of a picture in one
    pass (another order of examples).
    """

    padded: int
    packed: int
    prefix_shared: int
    grouped_by_image: int


@dataclass(frozen=True, slots=True)
class StepStats:
    """The steps of a run. passes, rows, labels: of all of it, as the engine would run it; largest: (rows, labels) of
    the largest pass; looked_at: how many steps these figures are made from; sizes: of their passes, in rows."""

    total_steps: int
    steps_per_epoch: int
    num_sampled: int
    num_microbatches: int
    tokens: int
    labels: int
    largest_microbatch: tuple[int, int]
    microbatch_tokens: tuple[int, ...]


def count_steps(
    examples: Sequence[Encoded], train: TrainSettings, seed: int, prefix_sharing: Share, *, group_by_image: bool = False
) -> StepStats:
    """The steps of the run's first epoch, for all. grouped: the captions of a picture stay together."""
    per_step = train.batch_size
    in_epoch = compute_steps_per_epoch(len(examples), per_step)
    total = min(in_epoch * train.epochs, train.max_steps or in_epoch * train.epochs)
    looked = list(_sample_steps(min(in_epoch, total)))
    groups = ImageGroups.from_examples(examples) if group_by_image else None
    passes = [
        (tree.num_tokens, sum(encoded.num_labels for encoded in tree.examples))
        for step in looked
        for chosen in [
            select_grouped_examples(step, groups, per_step, seed)
            if groups
            else select_examples(step, len(examples), per_step, seed)
        ]
        for tree in _split(examples, chosen, train, prefix_sharing)
    ]
    sizes = tuple(rows for rows, _ in passes)
    each = total / len(looked)
    return StepStats(
        total, in_epoch, len(looked), num_microbatches=round(len(passes) * each), tokens=round(sum(sizes) * each),
        labels=round(sum(labels for _, labels in passes) * each), largest_microbatch=max(passes), microbatch_tokens=sizes,
    )  # fmt: skip


def compare_layouts(examples: Sequence[Encoded], train: TrainSettings, seed: int) -> EpochTokens:
    per_step = train.batch_size
    in_epoch = compute_steps_per_epoch(len(examples), per_step)
    groups = ImageGroups.from_examples(examples)
    padded = packed = shared = grouped = 0
    looked = list(_sample_steps(in_epoch))
    for step in looked:
        chosen = select_examples(step, len(examples), per_step, seed)
        padded += _count_padded([len(examples[i].input_ids) for i in chosen], train.batch_size)
        packed += sum(tree.num_tokens for tree in _split(examples, chosen, train, "none"))
        shared += sum(tree.num_tokens for tree in _split(examples, chosen, train, "tree"))
        together = select_grouped_examples(step, groups, per_step, seed)
        grouped += sum(tree.num_tokens for tree in _split(examples, together, train, "tree"))
    each = in_epoch / len(looked)
    return EpochTokens(*(round(rows * each) for rows in (padded, packed, shared, grouped)))


def find_largest_eval_microbatch(
    examples: Sequence[Encoded], max_tokens: int, prefix_sharing: Share
) -> tuple[int, int]:
    """(rows, labels) of the largest pass of an eval loss."""
    if not examples:
        return 0, 0
    trees = build_prefix_trees(examples, max_tokens, prefix_sharing=prefix_sharing)
    return max((tree.num_tokens, sum(encoded.num_labels for encoded in tree.examples)) for tree in trees)


def _split(examples: Sequence[Encoded], chosen: Sequence[int], train: TrainSettings, share: Share) -> list[PrefixTree]:
    return build_prefix_trees((examples[i] for i in chosen), train.max_tokens_per_microbatch, prefix_sharing=share)


def _count_padded(lengths: Sequence[int], batch_size: int) -> int:
    batches = (lengths[at : at + batch_size] for at in range(0, len(lengths), batch_size))
    return sum(len(batch) * max(batch) for batch in batches)


def _sample_steps(steps: int) -> Iterator[int]:
    count = min(steps, MAX_SAMPLED_STEPS)
    return (i * steps // count for i in range(count))
