"""Steps, passes and rows are those that the training will have."""

from pathlib import Path

import PIL.Image
import pytest

from lorgnette import data
from lorgnette.commands import batch_stats
from lorgnette.commands.batch_stats import Tokens, held_out_of, rows_of, steps_of
from lorgnette.config import Encode, Train
from lorgnette.processing.packing import passes
from lorgnette.processing.processor import Encoder
from lorgnette.training.epoch_order import members
from lorgnette.types import Encoded

TRAIN = Train(epochs=3, batch_size=3, accumulation=2)


@pytest.fixture
def examples(tmp_path: Path, tiny: Path) -> list[Encoded]:
    """Twenty captions on five pictures."""
    rows = ["image_path,caption"]
    for i in range(20):
        PIL.Image.new("RGB", (56, 56), (i % 5 * 40, 0, 0)).save(tmp_path / f"{i % 5}.png")
        rows.append(f"{i % 5}.png,{'a word ' * (i % 4 + 1)}{i}")
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    encoder = Encoder.of_folder(tiny, Encode(size=(56, 56)))
    return [encoder.encode(row) for row in data.read(tmp_path / "captions.csv")]


def test_tokens() -> None:
    found = Tokens.of([10] * 90 + [11] * 4 + [30] * 6)
    assert (found.least, found.median, found.p95, found.most) == (10, 10, 30, 30)
    assert found.bars[0] == (10, 12, 94)
    assert found.bars[-1] == (28, 30, 6)
    assert sum(count for _, _, count in found.bars) == 100
    assert Tokens.of([7]).bars == ((7, 7, 1),)


@pytest.mark.parametrize("most_tokens", [10_000, 60])
@pytest.mark.parametrize("share", ["none", "tree"])
def test_steps_are_the_loops(examples: list[Encoded], share: str, most_tokens: int) -> None:
    train = TRAIN.model_copy(update={"pass_tokens": most_tokens})
    found = steps_of(examples, train, 5, share)  # type: ignore[arg-type]
    batches = [
        batch
        for step in range(4)
        for batch in passes([examples[i] for i in members(step, 20, 6, 5)], most_tokens, share=share)  # type: ignore[arg-type]
    ]
    assert (found.total, found.in_epoch, found.looked_at) == (12, 4, 4)
    assert found.sizes == tuple(len(batch.tokens) for batch in batches)
    assert (found.passes, found.rows) == (3 * len(batches), 3 * sum(found.sizes))
    assert found.labels == 3 * sum(encoded.label_count for encoded in examples)
    assert found.largest == max((len(batch.tokens), len(batch.targets)) for batch in batches)


def test_fewer_steps_than_an_epoch(examples: list[Encoded]) -> None:
    found = steps_of(examples, TRAIN.model_copy(update={"max_steps": 2}), 0, "none")
    assert (found.total, found.in_epoch, found.looked_at) == (2, 4, 2)


def test_each_way_of_laying_out_computes_fewer_rows(examples: list[Encoded]) -> None:
    found = rows_of(examples, TRAIN, 0)
    padded = 0
    for step in range(4):
        lengths = [len(examples[i].tokens) for i in members(step, 20, 6, 0)]
        padded += sum(len(part) * max(part) for part in (lengths[:3], lengths[3:]) if part)
    assert found.padded == padded
    assert found.packed == sum(len(encoded.tokens) - 2 for encoded in examples)
    assert found.padded > found.packed > found.shared > found.grouped


def test_of_a_long_epoch_some_steps_are_looked_at(examples: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_of(examples, TRAIN, 0)
    monkeypatch.setattr(batch_stats, "LOOKED_AT", 2)
    assert steps_of(examples, TRAIN, 0, "none").looked_at == 2
    assert rows_of(examples, TRAIN, 0).packed == pytest.approx(whole.packed, rel=0.3)


def test_the_largest_pass_of_an_eval_loss(examples: list[Encoded]) -> None:
    assert held_out_of([], 100, "none") == (0, 0)
    rows, labels = held_out_of(examples, 10_000, "none")
    assert (rows, labels) == (sum(len(e.tokens) - 2 for e in examples), sum(e.label_count for e in examples))
    assert held_out_of(examples, 10_000, "tree")[0] < rows
    assert held_out_of(examples, 100, "none")[0] <= 100
