"""The examples of every step and their micro-batches: pure functions of seed and step number.

Nothing is remembered between steps, so a resumed run needs only its step number. Knows nothing about models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, chain
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from lorgnette.config import TrainSettings
from lorgnette.processing.dropout_keys import derive_step_key
from lorgnette.processing.encoded_rows import RowSizes, select_rows
from lorgnette.processing.packing import build_prefix_trees, split_into_microbatches
from lorgnette.processing.prefix_tree import PrefixTree
from lorgnette.processing.rank_shares import split_between_ranks
from lorgnette.training.auto_steps import compute_step_limit
from lorgnette.types import Encoded, PackedBatch

MAX_TABLE = 10_000_000
"""Examples whose order is drawn as a table. The order of more is computed where it is asked for."""
_ROUNDS = 8
"""Of the Feistel network. Four make a permutation that no test of ours tells from a random one."""


@dataclass(frozen=True, eq=False)
class ImageGroups:
    """Indices of the examples that stay together in a step. Compared by identity, so that a cache lookup is cheap."""

    indices: tuple[tuple[int, ...], ...]

    @classmethod
    def from_examples(cls, examples: Sequence[Encoded]) -> "ImageGroups":
        """Group the examples by their first image; an example without images is a group of one."""
        groups: dict[int, list[int]] = {}
        for i, image in enumerate(RowSizes.from_examples(examples).first_images.tolist()):
            groups.setdefault(image if image >= 0 else -1 - i, []).append(i)
        return cls(tuple(map(tuple, groups.values())))

    @cached_property
    def num_examples(self) -> int:
        return sum(map(len, self.indices))


class BatchSampler:
    """Chooses the examples of a step and packs them into micro-batches."""

    def __init__(
        self, examples: Sequence[Encoded], settings: TrainSettings, seed: int, *, group_by_image: bool
    ) -> None:
        """group_by_image: a step takes all captions of its images together."""
        self.examples, self.batch_size, self.seed = examples, settings.batch_size, seed
        self.sizes = RowSizes.from_examples(examples)
        self.groups = ImageGroups.from_examples(examples) if group_by_image else None
        self.steps_per_epoch = compute_steps_per_epoch(len(examples), settings.batch_size)
        self.total_steps = compute_total_steps(self.steps_per_epoch, settings)

    def select(self, step: int) -> list[int]:
        """Indices of the examples of `step` (from 0)."""
        if self.groups is None:
            return select_examples(step, len(self.examples), self.batch_size, self.seed)
        return select_grouped_examples(step, self.groups, self.batch_size, self.seed)

    def pack_step(
        self, step: int, max_tokens: int, *, prefix_sharing: bool, rank: int = 0, num_ranks: int = 1
    ) -> list[PackedBatch]:
        """A rank's micro-batches of `step` (from 0), each of at most `max_tokens` tokens; [] if it has no example.

        The ranks' micro-batches together are the step: labels and dropout masks do not depend on num_ranks.
        """
        examples, step_key = select_rows(self.examples, self.select(step)), derive_step_key(self.seed, step)
        places = self.split_step(step, num_ranks, prefix_sharing=prefix_sharing)[rank]
        return split_into_microbatches(
            examples, max_tokens, prefix_sharing=prefix_sharing, step_key=step_key, places=places
        )

    def split_step(self, step: int, num_ranks: int, *, prefix_sharing: bool) -> list[list[int]]:
        """Each rank's places in `select(step)`, in order: all have about as many tokens, and groups stay whole."""
        pieces = self._list_pieces(step)
        starts, sizes = [0, *accumulate(map(len, pieces))], self._count_tokens(pieces, prefix_sharing)
        return [
            [place for piece in share for place in range(starts[piece], starts[piece + 1])]
            for share in split_between_ranks(sizes, num_ranks)
        ]

    def count_labels(self, step: int) -> int:
        """The labels of a whole step."""
        return int(self.sizes.num_labels[self.select(step)].sum())

    def build_trees(
        self, step: int, max_tokens: int, *, prefix_sharing: bool, num_ranks: int = 1
    ) -> list[list[PrefixTree]]:
        """Each rank's micro-batches of `step` without their arrays: their number, tokens and labels."""
        examples = select_rows(self.examples, self.select(step))
        return [
            build_prefix_trees((examples[place] for place in places), max_tokens, prefix_sharing=prefix_sharing)
            for places in self.split_step(step, num_ranks, prefix_sharing=prefix_sharing)
        ]

    def _list_pieces(self, step: int) -> list[tuple[int, ...]]:
        """The examples of a step, in order, in pieces that stay together."""
        if self.groups is None:
            return [(i,) for i in self.select(step)]
        return select_groups(step, self.groups, self.batch_size, self.seed)

    def _count_tokens(self, pieces: Sequence[tuple[int, ...]], prefix_sharing: bool) -> list[int]:
        """Computed tokens of each piece: with prefix sharing its examples share those up to the image's end."""
        indices, counts = list(chain.from_iterable(pieces)), np.array(list(map(len, pieces)))
        starts, lengths = counts.cumsum() - counts, self.sizes.used_lengths[indices]
        shared = np.minimum(self.sizes.shared_lengths[indices], lengths) * prefix_sharing
        tokens = np.add.reduceat(lengths, starts) - np.minimum.reduceat(shared, starts) * (counts - 1)
        return [int(count) for count in tokens]

    def pack_first_steps(
        self, num_examples: int, max_tokens: int, *, prefix_sharing: bool, num_ranks: int = 1
    ) -> list[PackedBatch]:
        """All ranks' micro-batches of the first steps, about `num_examples` examples: they show the shapes of the rest.

        So every rank has the same shapes, and needs as much memory.
        """
        steps = min(self.total_steps, max(1, num_examples // self.batch_size))
        packed = (
            self.pack_step(step, max_tokens, prefix_sharing=prefix_sharing, rank=rank, num_ranks=num_ranks)
            for step in range(steps)
            for rank in range(num_ranks)
        )
        return list(chain.from_iterable(packed))


def compute_steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Steps of one pass over the examples; the last step may be smaller."""
    return math.ceil(num_examples / batch_size)


def compute_total_steps(steps_per_epoch: int, settings: TrainSettings) -> int:
    """Steps of a training; with `train.epochs=auto` at most."""
    if settings.epochs == "auto":
        return compute_step_limit(steps_per_epoch, settings.max_steps)
    steps = steps_per_epoch * settings.epochs
    return min(steps, settings.max_steps or steps)


def select_examples(step: int, num_examples: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the examples of `step` (from 0): every epoch is a new permutation, drawn from (seed, epoch)."""
    epoch, index = divmod(step, compute_steps_per_epoch(num_examples, batch_size))
    start, end = index * batch_size, min((index + 1) * batch_size, num_examples)
    if num_examples > MAX_TABLE:
        places = np.arange(start, end)
        return [int(place) for place in permute(places, num_examples, seed, epoch)]
    return [int(place) for place in _draw_order(epoch, num_examples, seed)[start:end]]


def select_grouped_examples(step: int, groups: ImageGroups, batch_size: int, seed: int) -> list[int]:
    """As `select_examples`, but a step takes whole groups.

    A step has batch_size examples, plus or minus one group; an epoch has as many steps as without groups. Only a group
    of more than batch_size examples is split, into parts of batch_size.
    """
    return list(chain.from_iterable(select_groups(step, groups, batch_size, seed)))


def select_groups(step: int, groups: ImageGroups, batch_size: int, seed: int) -> list[tuple[int, ...]]:
    """The groups, or their parts, of `select_grouped_examples`."""
    epoch, index = divmod(step, compute_steps_per_epoch(groups.num_examples, batch_size))
    parts, order, starts = _assign_groups_to_steps(epoch, groups, batch_size, seed)
    return [parts[part] for part in order[starts[index] : starts[index + 1]].tolist()]


@lru_cache(maxsize=2)
def _draw_order(epoch: int, num_items: int, seed: int) -> Int64[np.ndarray, " N"]:
    return np.random.default_rng([seed, epoch]).permutation(num_items)


def permute(places: Int64[np.ndarray, " n"], num_items: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The items at these places of an epoch's order, a permutation of range(num_items) that needs no table.

    A Feistel network permutes the numbers of an even number of bits; whatever it takes outside of the range goes
    through it again (cycle walking), fewer than three times on average.
    """
    half_bits = max(1, ((num_items - 1).bit_length() + 1) >> 1)
    keys = np.random.default_rng([seed, epoch]).integers(0, 2**64, _ROUNDS, np.uint64)
    items = places.astype(np.uint64)
    is_outside = np.ones(len(items), bool)
    while is_outside.any():
        items[is_outside] = _encrypt(items[is_outside], half_bits, keys)
        is_outside = items >= num_items
    return items.astype(np.int64)


def _encrypt(numbers: UInt64[np.ndarray, " n"], half_bits: int, keys: UInt64[np.ndarray, " r"]) -> Any:
    """A permutation of the numbers below 4 ** half_bits."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = numbers >> shift, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: UInt64[np.ndarray, " n"]) -> Any:
    """SplitMix64's hash."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=2)
def _assign_groups_to_steps(
    epoch: int, groups: ImageGroups, batch_size: int, seed: int
) -> tuple[list[tuple[int, ...]], Int64[np.ndarray, " parts"], list[int]]:
    """(parts, their order in the epoch, index in that order where each step starts, with the end of the last)."""
    parts = [group[i : i + batch_size] for group in groups.indices for i in range(0, len(group), batch_size)]
    order = _draw_order(epoch, len(parts), seed)
    sizes = np.array([len(part) for part in parts])[order]
    steps = compute_steps_per_epoch(int(sizes.sum()), batch_size)
    index = np.arange(len(parts))
    # In a row of all examples, a part belongs to the step that contains its middle.
    step_of_part = (2 * sizes.cumsum() - sizes - 1) // (2 * batch_size)
    # No step may stay empty: parts move by one step. They suffice, since no part is longer than a step.
    step_of_part = np.maximum(step_of_part, index + steps - len(parts))
    step_of_part = np.minimum.accumulate(step_of_part - index) + index
    return parts, order, np.searchsorted(step_of_part, np.arange(steps + 1)).tolist()
