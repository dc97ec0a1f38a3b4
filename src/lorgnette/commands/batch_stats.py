"""What a training's examples come to: tokens, steps, passes, and the rows that each way of laying them out computes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorgnette.config import Train
from lorgnette.processing.packing import cut
from lorgnette.processing.prefix_tree import Share, Tree
from lorgnette.training.epoch_order import Groups, grouped_members, members, steps_in_epoch
from lorgnette.types import Encoded

LOOKED_AT = 256
"""Steps of an epoch that are laid out; of a longer one, so many evenly spread."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of an example."""

    least: int
    median: int
    p95: int
    most: int
    bars: tuple[tuple[int, int, int], ...]
    """(from, to, how many), both ends included."""

    @classmethod
    def of(cls, lengths: Sequence[int], bars: int = 8) -> "Tokens":
        found = np.sort(np.asarray(lengths))
        width = -(-int(found[-1] - found[0] + 1) // bars)
        borders = range(int(found[0]), int(found[-1]) + 1, width)
        counted = tuple((at, at + width - 1, int(((found >= at) & (found < at + width)).sum())) for at in borders)
        median, p95 = (int(np.quantile(found, q, method="higher")) for q in (0.5, 0.95))
        return cls(int(found[0]), median, p95, int(found[-1]), counted)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that one epoch computes, as each way of laying it out has it.

    padded: micro-batches of `batch_size`, each as long as its longest; packed: no padding, and nothing behind the last
    label; shared: what any two examples of a pass begin with once; grouped: the same, the captions of a picture in one
    pass (another order of examples).
    """

    padded: int
    packed: int
    shared: int
    grouped: int


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a run. passes, rows, labels: of all of it, as the engine would run it; largest: (rows, labels) of
    the largest pass; looked_at: how many steps these figures are made from; sizes: of their passes, in rows."""

    total: int
    in_epoch: int
    looked_at: int
    passes: int
    rows: int
    labels: int
    largest: tuple[int, int]
    sizes: tuple[int, ...]


def steps_of(examples: Sequence[Encoded], train: Train, seed: int, share: Share, *, grouped: bool = False) -> Steps:
    """The steps of the run's first epoch, for all. grouped: the captions of a picture stay together."""
    per_step = train.batch_size * train.accumulation
    in_epoch = steps_in_epoch(len(examples), per_step)
    total = min(in_epoch * train.epochs, train.max_steps or in_epoch * train.epochs)
    looked = list(_looked_at(min(in_epoch, total)))
    groups = Groups.by_picture(examples) if grouped else None
    passes = [
        (tree.rows, sum(encoded.label_count for encoded in tree.examples))
        for step in looked
        for chosen in [
            grouped_members(step, groups, per_step, seed) if groups else members(step, len(examples), per_step, seed)
        ]
        for tree in _cut(examples, chosen, train, share)
    ]
    sizes = tuple(rows for rows, _ in passes)
    each = total / len(looked)
    return Steps(
        total, in_epoch, len(looked), passes=round(len(passes) * each), rows=round(sum(sizes) * each),
        labels=round(sum(labels for _, labels in passes) * each), largest=max(passes), sizes=sizes,
    )  # fmt: skip


def rows_of(examples: Sequence[Encoded], train: Train, seed: int) -> Rows:
    per_step = train.batch_size * train.accumulation
    in_epoch = steps_in_epoch(len(examples), per_step)
    groups = Groups.by_picture(examples)
    padded = packed = shared = grouped = 0
    looked = list(_looked_at(in_epoch))
    for step in looked:
        chosen = members(step, len(examples), per_step, seed)
        padded += _padded([len(examples[i].tokens) for i in chosen], train.batch_size)
        packed += sum(tree.rows for tree in _cut(examples, chosen, train, "none"))
        shared += sum(tree.rows for tree in _cut(examples, chosen, train, "tree"))
        together = grouped_members(step, groups, per_step, seed)
        grouped += sum(tree.rows for tree in _cut(examples, together, train, "tree"))
    each = in_epoch / len(looked)
    return Rows(*(round(rows * each) for rows in (padded, packed, shared, grouped)))


def held_out_of(examples: Sequence[Encoded], most_tokens: int, share: Share) -> tuple[int, int]:
    """(rows, labels) of the largest pass of an eval loss."""
    if not examples:
        return 0, 0
    trees = cut(examples, most_tokens, share=share)
    return max((tree.rows, sum(encoded.label_count for encoded in tree.examples)) for tree in trees)


def _cut(examples: Sequence[Encoded], chosen: Sequence[int], train: Train, share: Share) -> list[Tree]:
    return cut((examples[i] for i in chosen), train.pass_tokens, share=share)


def _padded(lengths: Sequence[int], batch_size: int) -> int:
    batches = (lengths[at : at + batch_size] for at in range(0, len(lengths), batch_size))
    return sum(len(batch) * max(batch) for batch in batches)


def _looked_at(steps: int) -> Iterator[int]:
    count = min(steps, LOOKED_AT)
    return (i * steps // count for i in range(count))
