"""Steps, passes and rows are those that the training will have."""

from pathlib import Path

import PIL.Image
import pytest

from lorgnette import data
from lorgnette.commands import batch_stats
from lorgnette.commands.batch_stats import TokenLengths, compare_layouts, count_steps, find_largest_eval_microbatch
from lorgnette.config import ProcessorSettings, TrainSettings
from lorgnette.processing.packing import split_into_microbatches
from lorgnette.processing.processor import Processor
from lorgnette.training.epoch_order import select_examples
from lorgnette.types import Encoded

TRAIN = TrainSettings(epochs=3, batch_size=6)


@pytest.fixture
def examples(tmp_path: Path, tiny: Path) -> list[Encoded]:
    """Twenty captions on five pictures."""
    rows = ["image_path,caption"]
    for i in range(20):
        PIL.Image.new("RGB", (56, 56), (i % 5 * 40, 0, 0)).save(tmp_path / f"{i % 5}.png")
        rows.append(f"{i % 5}.png,{'a word ' * (i % 4 + 1)}{i}")
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    encoder = Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56)))
    return [encoder.encode(row) for row in data.read(tmp_path / "captions.csv")]


def test_tokens() -> None:
    found = TokenLengths.from_lengths([10] * 90 + [11] * 4 + [30] * 6)
    assert (found.min, found.median, found.p95, found.max) == (10, 10, 30, 30)
    assert found.histogram[0] == (10, 12, 94)
    assert found.histogram[-1] == (28, 30, 6)
    assert sum(count for _, _, count in found.histogram) == 100
    assert TokenLengths.from_lengths([7]).histogram == ((7, 7, 1),)


@pytest.mark.parametrize("most_tokens", [10_000, 60])
@pytest.mark.parametrize("share", ["none", "tree"])
def test_steps_are_the_loops(examples: list[Encoded], share: str, most_tokens: int) -> None:
    train = TRAIN.model_copy(update={"pass_tokens": most_tokens})
    found = count_steps(examples, train, 5, share)  # type: ignore[arg-type]
    batches = [
        batch
        for step in range(4)
        for batch in split_into_microbatches(
            [examples[i] for i in select_examples(step, 20, 6, 5)], most_tokens, prefix_sharing=share
        )  # type: ignore[arg-type]
    ]
    assert (found.total_steps, found.steps_per_epoch, found.num_sampled) == (12, 4, 4)
    assert found.microbatch_tokens == tuple(len(batch.input_ids) for batch in batches)
    assert (found.num_microbatches, found.tokens) == (3 * len(batches), 3 * sum(found.microbatch_tokens))
    assert found.labels == 3 * sum(encoded.num_labels for encoded in examples)
    assert found.largest_microbatch == max((len(batch.input_ids), len(batch.targets)) for batch in batches)


def test_fewer_steps_than_an_epoch(examples: list[Encoded]) -> None:
    found = count_steps(examples, TRAIN.model_copy(update={"max_steps": 2}), 0, "none")
    assert (found.total_steps, found.steps_per_epoch, found.num_sampled) == (2, 4, 2)


def test_each_way_of_laying_out_computes_fewer_rows(examples: list[Encoded]) -> None:
    found = compare_layouts(examples, TRAIN, 0)
    padded = 0
    for step in range(4):
        lengths = [len(examples[i].input_ids) for i in select_examples(step, 20, 6, 0)]
        padded += sum(len(part) * max(part) for part in (lengths[:3], lengths[3:]) if part)
    assert found.padded == padded
    assert found.packed == sum(len(encoded.input_ids) - 2 for encoded in examples)
    assert found.padded > found.packed > found.prefix_shared > found.grouped_by_image


def test_of_a_long_epoch_some_steps_are_looked_at(examples: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare_layouts(examples, TRAIN, 0)
    monkeypatch.setattr(batch_stats, "MAX_SAMPLED_STEPS", 2)
    assert count_steps(examples, TRAIN, 0, "none").num_sampled == 2
    assert compare_layouts(examples, TRAIN, 0).packed == pytest.approx(whole.packed, rel=0.3)


def test_the_largest_pass_of_an_eval_loss(examples: list[Encoded]) -> None:
    assert find_largest_eval_microbatch([], 100, "none") == (0, 0)
    rows, labels = find_largest_eval_microbatch(examples, 10_000, "none")
    assert (rows, labels) == (sum(len(e.input_ids) - 2 for e in examples), sum(e.num_labels for e in examples))
    assert find_largest_eval_microbatch(examples, 10_000, "tree")[0] < rows
    assert find_largest_eval_microbatch(examples, 100, "none")[0] <= 100
