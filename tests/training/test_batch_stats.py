"""Steps, micro-batches and tokens equal those of the training."""

from pathlib import Path

import PIL.Image
import pytest

from lorgnette import data
from lorgnette.config import ProcessorSettings, TrainSettings
from lorgnette.processing.processor import Processor
from lorgnette.training import batch_stats
from lorgnette.training.batch_stats import EpochTokens, TokenLengths, compare_layouts, count_steps
from lorgnette.training.sampler import BatchSampler
from lorgnette.types import Encoded


@pytest.fixture
def examples(tmp_path: Path, tiny: Path) -> list[Encoded]:
    """Twenty captions of five images."""
    rows = ["image_path,caption"]
    for i in range(20):
        PIL.Image.new("RGB", (56, 56), (i % 5 * 40, 0, 0)).save(tmp_path / f"{i % 5}.png")
        rows.append(f"{i % 5}.png,{'a word ' * (i % 4 + 1)}{i}")
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    processor = Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56)))
    return [processor.encode(row) for row in data.read(tmp_path / "captions.csv")]


def build_sampler(
    examples: list[Encoded], *, group_by_image: bool = False, max_steps: int | None = None
) -> BatchSampler:
    settings = TrainSettings(epochs=3, batch_size=6, max_steps=max_steps)
    return BatchSampler(examples, settings, 5, group_by_image=group_by_image)


def compare(examples: list[Encoded]) -> EpochTokens:
    return compare_layouts(build_sampler(examples), build_sampler(examples, group_by_image=True), 10_000)


def test_the_histogram_counts_every_example() -> None:
    lengths = TokenLengths.from_lengths([10] * 90 + [11] * 4 + [30] * 6)
    assert (lengths.min, lengths.median, lengths.p95, lengths.max) == (10, 10, 30, 30)
    assert lengths.histogram[0] == (10, 12, 94)
    assert lengths.histogram[-1] == (28, 30, 6)
    assert sum(count for _, _, count in lengths.histogram) == 100
    assert TokenLengths.from_lengths([7]).histogram == ((7, 7, 1),)


@pytest.mark.parametrize("group_by_image", [False, True])
def test_steps_of_several_ranks_are_those_of_the_sampler(examples: list[Encoded], group_by_image: bool) -> None:
    """Also of a rank without examples."""
    sampler = build_sampler(examples, group_by_image=group_by_image)
    for num_ranks in (2, 8):
        stats = count_steps(sampler, 10_000, prefix_sharing=True, num_ranks=num_ranks)
        packed = [
            sampler.pack_step(step, 10_000, prefix_sharing=True, rank=rank, num_ranks=num_ranks)
            for step in range(4) for rank in range(num_ranks)
        ]  # fmt: skip
        tokens = [len(batch.input_ids) for batches in packed for batch in batches]
        assert (stats.tokens, stats.num_microbatches) == (3 * sum(tokens), 3 * len(tokens))
        assert stats.largest_microbatch[0] == max(tokens)
    assert [] in packed
    [full, *_] = (build_sampler(examples).select(step) for step in range(4))
    assert stats.tokens_per_step == pytest.approx(stats.tokens / 3 / 20 * len(full), abs=1)


@pytest.mark.parametrize("max_tokens", [10_000, 60])
@pytest.mark.parametrize("prefix_sharing", [False, True])
@pytest.mark.parametrize("group_by_image", [False, True])
def test_steps_equal_those_of_the_sampler(
    examples: list[Encoded], group_by_image: bool, prefix_sharing: bool, max_tokens: int
) -> None:
    sampler = build_sampler(examples, group_by_image=group_by_image)
    stats = count_steps(sampler, max_tokens, prefix_sharing=prefix_sharing)
    batches = [
        batch for step in range(4) for batch in sampler.pack_step(step, max_tokens, prefix_sharing=prefix_sharing)
    ]
    tokens = [len(batch.input_ids) for batch in batches]
    assert (stats.total_steps, stats.steps_per_epoch, stats.num_sampled) == (12, 4, 4)
    assert (stats.num_microbatches, stats.tokens) == (3 * len(batches), 3 * sum(tokens))
    assert stats.labels == 3 * sum(encoded.num_labels for encoded in examples)
    assert stats.largest_microbatch == max((len(batch.input_ids), len(batch.targets)) for batch in batches)


def test_a_run_may_be_shorter_than_an_epoch(examples: list[Encoded]) -> None:
    stats = count_steps(build_sampler(examples, max_steps=2), 10_000, prefix_sharing=False)
    assert (stats.total_steps, stats.steps_per_epoch, stats.num_sampled) == (2, 4, 2)


def test_each_layout_computes_fewer_tokens(examples: list[Encoded]) -> None:
    layouts, sampler = compare(examples), build_sampler(examples)
    lengths = [[len(examples[i].input_ids) for i in sampler.select(step)] for step in range(4)]
    assert layouts.padded == sum(len(step) * max(step) for step in lengths)
    assert layouts.packed == sum(len(encoded.input_ids) - 2 for encoded in examples)
    assert layouts.padded > layouts.packed > layouts.prefix_shared > layouts.grouped_by_image


def test_only_some_steps_of_a_long_epoch_are_packed(examples: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    all_steps = compare(examples)
    monkeypatch.setattr(batch_stats, "MAX_SAMPLED_STEPS", 2)
    assert count_steps(build_sampler(examples), 10_000, prefix_sharing=False).num_sampled == 2
    assert compare(examples).packed == pytest.approx(all_steps.packed, rel=0.3)
