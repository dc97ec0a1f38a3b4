"""The examples of a step depend on its number and the seed alone: every example once an epoch, groups whole."""

from collections.abc import Callable
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette import data
from lorgnette.config import ProcessorSettings, TrainSettings
from lorgnette.processing.encoded_rows import EncodedRows
from lorgnette.processing.processor import Processor
from lorgnette.training import sampler
from lorgnette.training.sampler import (
    BatchSampler,
    ImageGroups,
    compute_steps_per_epoch,
    select_examples,
    select_grouped_examples,
)
from lorgnette.types import Encoded, Example, Image, ImageGrid, PackedBatch

COUNT = st.integers(1, 60)
SETTINGS = TrainSettings(batch_size=4, epochs=3)


@given(examples=COUNT, batch_size=COUNT, seed=st.integers(0, 2**62), epochs=st.integers(1, 3))
def test_every_epoch_takes_every_example_once(examples: int, batch_size: int, seed: int, epochs: int) -> None:
    count = compute_steps_per_epoch(examples, batch_size)
    for epoch in range(epochs):
        steps = [select_examples(epoch * count + i, examples, batch_size, seed) for i in range(count)]
        assert sorted(i for step in steps for i in step) == list(range(examples))
        assert [len(step) for step in steps[:-1]] == [batch_size] * (count - 1)
        assert 1 <= len(steps[-1]) <= batch_size


@given(examples=COUNT, batch_size=COUNT, steps=st.lists(st.integers(0, 300), max_size=8))
def test_a_step_does_not_depend_on_the_steps_before(examples: int, batch_size: int, steps: list[int]) -> None:
    in_order = {step: select_examples(step, examples, batch_size, 5) for step in range(max(steps, default=0) + 1)}
    assert all(select_examples(step, examples, batch_size, 5) == in_order[step] for step in steps)


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [select_examples(epoch, 50, 50, seed) for epoch in range(3) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert list(range(50)) not in orders
    changed = select_examples(0, 50, 50, 0)
    changed.clear()
    assert select_examples(0, 50, 50, 0) == orders[0]


def build_groups(sizes: list[int]) -> ImageGroups:
    return ImageGroups(tuple(tuple(range(a, b)) for a, b in pairwise(accumulate([0, *sizes]))))


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=40), batch_size=st.integers(1, 20), seed=st.integers(0, 9)
)
def test_groups_stay_whole_and_every_example_comes_once_an_epoch(sizes: list[int], batch_size: int, seed: int) -> None:
    groups = build_groups(sizes)
    count = compute_steps_per_epoch(sum(sizes), batch_size)
    largest = min(max(sizes), batch_size)
    for epoch in range(2):
        steps = [select_grouped_examples(epoch * count + i, groups, batch_size, seed) for i in range(count)]
        assert sorted(i for step in steps for i in step) == list(range(sum(sizes)))
        assert all(1 <= len(step) <= batch_size + largest for step in steps)
        for group in groups.indices:
            steps_of_group = {n for n, step in enumerate(steps) if not set(group).isdisjoint(step)}
            assert len(steps_of_group) <= -(-len(group) // batch_size)


@given(examples=COUNT, batch_size=COUNT, seed=st.integers(0, 9), step=st.integers(0, 200))
def test_groups_of_one_are_no_groups(examples: int, batch_size: int, seed: int, step: int) -> None:
    groups = build_groups([1] * examples)
    assert select_grouped_examples(step, groups, batch_size, seed) == select_examples(step, examples, batch_size, seed)


def test_a_step_of_groups_does_not_depend_on_the_steps_before() -> None:
    sizes = [5, 5, 6, 5, 1, 7, 5] * 9
    in_order = [select_grouped_examples(step, build_groups(sizes), 16, 3) for step in range(60)]
    for step in (59, 0, 33, 34, 2):
        assert select_grouped_examples(step, build_groups(sizes), 16, 3) == in_order[step]
    assert in_order != [select_grouped_examples(step, build_groups(sizes), 16, 4) for step in range(60)]
    epochs = [[tuple(step) for step in in_order[start : start + 20]] for start in (0, 20, 40)]
    assert compute_steps_per_epoch(sum(sizes), 16) == 20
    assert set(epochs[0]).isdisjoint(epochs[1])


def test_five_captions_per_image_fill_the_steps_evenly() -> None:
    """As in COCO: 16 examples per step are three images, sometimes four."""
    groups = build_groups([5] * 1000)
    sizes = [len(select_grouped_examples(step, groups, 16, 0)) for step in range(compute_steps_per_epoch(5000, 16))]
    assert set(sizes[:-1]) == {15, 20}
    assert sum(sizes) == 5000


def test_examples_are_grouped_by_their_first_image() -> None:
    cat, dog = (ImageGrid(Image(Path(name)), 1, 2, 2, 2) for name in ("cat.png", "dog.png"))
    empty = np.zeros(0, np.int32)
    examples = [
        Encoded(Example("", (), Path("x"), 1), empty, empty, empty.reshape(3, 0), grids, (0,) * len(grids))
        for grids in ((cat,), (), (dog,), (cat, dog), (), (cat,))
    ]
    assert ImageGroups.from_examples(examples).indices == ((0, 3, 5), (1,), (2,), (4,))


@pytest.fixture
def encoded(tiny: Path, example: Callable[..., Example]) -> list[Encoded]:
    """Ten captions of five images, two of each."""
    processor = Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56)))
    return [
        processor.encode(example(("user", i // 2, "COCO Yes:"), ("assistant", "red car " * (i + 1)))) for i in range(10)
    ]


def test_a_step_packs_the_selected_examples(encoded: list[Encoded]) -> None:
    sampler = BatchSampler(encoded, SETTINGS, 7, group_by_image=False)
    assert (sampler.batch_size, sampler.steps_per_epoch, sampler.total_steps) == (4, 3, 9)
    for step in range(sampler.total_steps):
        batches = sampler.pack_step(step, 10**6, prefix_sharing=False)
        packed = [example for batch in batches for example in batch.examples]
        assert packed == [encoded[i].example for i in select_examples(step, 10, 4, 7)]
    assert len(sampler.pack_step(0, 1, prefix_sharing=False)) == 4
    short = SETTINGS.model_copy(update={"max_steps": 5})
    assert BatchSampler(encoded, short, 7, group_by_image=False).total_steps == 5


def test_seed_and_step_decide_the_dropout_keys(encoded: list[Encoded]) -> None:
    """So a resumed run, and one with smaller micro-batches, drops the same values; every other step drops others."""

    def list_keys(seed: int, step: int, max_tokens: int = 10**6) -> list[int]:
        sampler = BatchSampler(encoded, SETTINGS, seed, group_by_image=False)
        batches = sampler.pack_step(step, max_tokens, prefix_sharing=False)
        return [key for batch in batches for key in batch.dropout_keys.tolist()]

    assert list_keys(7, 2) == list_keys(7, 2, max_tokens=1)
    for other in (list_keys(7, 3), list_keys(8, 2)):
        assert not set(list_keys(7, 2)) & set(other)


def test_captions_of_an_image_stay_together_if_grouped(encoded: list[Encoded]) -> None:
    sampler = BatchSampler(encoded, SETTINGS, 7, group_by_image=True)
    for step in range(sampler.total_steps):
        grids = [grid for batch in sampler.pack_step(step, 10**6, prefix_sharing=True) for grid in batch.grids]
        assert len(grids) == len(set(grids)) <= 2


@pytest.mark.parametrize("group_by_image", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_the_ranks_shares_are_the_step(encoded: list[Encoded], num_ranks: int, group_by_image: bool) -> None:
    """Every example once, with the masks and the label weights of the whole step; some ranks have none."""
    sampler = BatchSampler(encoded, SETTINGS, 7, group_by_image=group_by_image)

    def describe(batches: list[PackedBatch]) -> dict[str, tuple[set[int], float]]:
        return {
            batch.examples[0].id: (set(batch.dropout_keys.tolist()), float(batch.label_weights[0])) for batch in batches
        }

    for step in range(sampler.total_steps):
        selected = sampler.select(step)
        shares = sampler.split_step(step, num_ranks, prefix_sharing=group_by_image)
        assert sorted(place for share in shares for place in share) == list(range(len(selected)))
        packed = [
            sampler.pack_step(step, 1, prefix_sharing=group_by_image, rank=rank, num_ranks=num_ranks)
            for rank in range(num_ranks)
        ]
        for share, batches in zip(shares, packed, strict=True):
            examples = [example for batch in batches for example in batch.examples]
            assert examples == [encoded[selected[place]].example for place in share]
        whole = sampler.pack_step(step, 1, prefix_sharing=group_by_image)
        assert describe(whole) == {key: value for batches in packed for key, value in describe(batches).items()}
        assert sum(len(batch.targets) for batches in packed for batch in batches) == sampler.count_labels(step)
        if group_by_image:
            for share in shares:
                own = {encoded[selected[place]].grids for place in share}
                others = {encoded[selected[place]].grids for place in range(len(selected)) if place not in share}
                assert not own & others


@pytest.mark.parametrize("group_by_image", [False, True])
def test_the_ranks_have_about_as_many_tokens(encoded: list[Encoded], group_by_image: bool) -> None:
    """Steps of all ten captions: no rank computes more than the mean plus the largest piece."""
    settings = SETTINGS.model_copy(update={"batch_size": 10})
    sampler, options = BatchSampler(encoded, settings, 7, group_by_image=group_by_image), {"prefix_sharing": True}
    for num_ranks in (1, 2, 3):
        trees = sampler.build_trees(0, 60, num_ranks=num_ranks, **options)
        batches = [sampler.pack_step(0, 60, rank=rank, num_ranks=num_ranks, **options) for rank in range(num_ranks)]
        tokens = [sum(len(batch.input_ids) for batch in own) for own in batches]
        assert [[tree.num_tokens for tree in own] for own in trees] == [
            [len(batch.input_ids) for batch in own] for own in batches
        ]
        size = 2 if group_by_image else 1
        largest = max(sampler._count_tokens([tuple(range(i, i + size)) for i in range(0, 10, size)], True))
        assert max(tokens) <= sum(tokens) / num_ranks + largest
    if group_by_image:  # an image and its prompt count once
        pieces = sampler._count_tokens([(i, i + 1) for i in range(0, 10, 2)], True)
        whole = [sum(sampler.sizes.used_lengths[i : i + 2]) for i in range(0, 10, 2)]
        shared = sampler.sizes.shared_lengths[::2]
        assert pieces == [int(length - image) for length, image in zip(whole, shared, strict=True)]
        assert shared.min() > 4


def test_real_captions_are_dealt_evenly(tiny_real: Path, shared: Callable[[str], Path]) -> None:
    """400 captions of images in their own sizes: the mean over steps of what the slowest rank has more than the mean.
    Dealt in order, it is several times as much."""
    processor = Processor.from_folder(tiny_real, ProcessorSettings(image_size=None))
    captions = [row for row in data.read(shared("coco/captions.csv"), prompt="COCO Yes:") if isinstance(row, Example)]
    rows = map(processor.encode_row, captions)
    packed = EncodedRows.from_rows(rows, processor.image_token_id, processor.compute_position_ids)
    for batch_size, num_ranks, limit, in_order_limit in ((16, 8, 0.06, 0.12), (64, 2, 0.002, 0.008)):
        settings = TrainSettings(batch_size=batch_size, epochs=10)
        sampler = BatchSampler(packed, settings, 0, group_by_image=False)
        dealt, in_order = list[float](), list[float]()
        for step in range(0, sampler.total_steps, sampler.total_steps // 50):
            lengths = sampler.sizes.used_lengths[sampler.select(step)]
            mean = lengths.sum() / num_ranks
            if len(lengths) == batch_size:  # not the last of an epoch
                shares = sampler.split_step(step, num_ranks, prefix_sharing=False)
                dealt.append(max(lengths[share].sum() for share in shares) / mean - 1)
                in_order.append(max(part.sum() for part in np.array_split(lengths, num_ranks)) / mean - 1)
        assert len(dealt) > 40
        assert np.mean(dealt) < limit
        assert np.mean(in_order) > in_order_limit


def test_the_first_steps_are_those_that_training_takes(encoded: list[Encoded]) -> None:
    sampler = BatchSampler(encoded, SETTINGS, 7, group_by_image=False)
    first = sampler.pack_first_steps(1, 10**6, prefix_sharing=False)
    packed = sampler.pack_step(0, 10**6, prefix_sharing=False)
    assert [batch.examples for batch in first] == [batch.examples for batch in packed]
    assert len(sampler.pack_first_steps(9, 10**6, prefix_sharing=False)) == 2
    ranks = sampler.pack_first_steps(9, 10**6, prefix_sharing=False, num_ranks=3)
    assert len(ranks) == 6  # two steps of three ranks
    assert sum(len(batch.examples) for batch in ranks) == 8
    assert len(sampler.pack_first_steps(10**6, 10**6, prefix_sharing=False)) == sampler.total_steps


def test_the_order_of_many_examples_needs_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MAX_TABLE", 0)
    for num_examples in (1, 2, 3, 5, 64, 100, 257):
        steps = [select_examples(step, num_examples, 7, 3) for step in range(2 * -(-num_examples // 7))]
        first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]
        for epoch in (first, second):
            assert sorted(chain(*epoch)) == list(range(num_examples))
        if num_examples > 5:
            assert first != second
            assert first[0] != select_examples(0, num_examples, 7, 4)
    # Nothing is computed but what is asked for: a step of ten billion examples.
    assert len(set(select_examples(10**8, 10**10, 16, 0))) == 16


def test_the_order_without_a_table_is_as_random_as_one_with() -> None:
    """Every item is at every place equally often, and so is every pair of neighbors: chi-squared over 1,500 epochs."""

    def compute_chi(draw: Callable[[int], np.ndarray]) -> tuple[float, float]:
        places, neighbors = np.zeros((2, 13, 13))
        for epoch in range(1500):
            order = draw(epoch)
            places[np.arange(13), order] += 1
            neighbors[order[:-1], order[1:]] += 1
        np.fill_diagonal(neighbors, 1500 * 12 / (13 * 12))
        return tuple(float(((n - n.mean()) ** 2).sum() / n.mean()) for n in (places, neighbors))

    chi_places, chi_neighbors = compute_chi(lambda epoch: sampler.permute(np.arange(13), 13, 5, epoch))
    assert chi_places < 210  # 144 degrees of freedom, p = 0.0003
    assert chi_neighbors < 225  # about 155
    rotated, _ = compute_chi(lambda epoch: np.roll(np.arange(13), epoch % 5))
    assert rotated > 1000
