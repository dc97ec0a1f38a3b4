import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_stats import compute_histogram, compute_token_stats
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import Example, Image, Turn

ENCODE = ProcessorSettings(image_size=(56, 56), max_length=60)


@pytest.fixture(scope="module")
def encoder() -> Processor:
    return Processor.from_folder(BUILT_IN_MODEL, ENCODE)


def test_all_are_counted_and_those_over_the_budget_named(encoder: Processor, example: Callable[..., Example]) -> None:
    rows = [example(("user", 0, "q"), ("assistant", "a" * count)) for count in (1, 5, 90)]
    tokens, findings = compute_token_stats(encoder, rows, max_new_tokens=200)
    lengths = [
        len(Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 56))).encode(row).input_ids)
        for row in rows
    ]
    assert tokens is not None
    assert (tokens.num_examples, tokens.num_tokens, tokens.num_image_tokens) == (3, sum(lengths), 12)
    assert (tokens.shortest, tokens.median, tokens.longest) == (lengths[0], lengths[1], lengths[2])
    assert sum(count for _, _, count in tokens.histogram) == 3
    [finding] = findings
    assert finding.kind == "over-budget"
    assert finding.is_blocking
    with pytest.raises(LorgnetteError) as refused:
        encoder.encode(rows[2])
    assert finding.problem.message == refused.value.message  # training's own words


def test_an_answer_longer_than_predictions(encoder: Processor, example: Callable[..., Example]) -> None:
    short, long = example(("user", "q"), ("assistant", "a b")), example(("user", "q"), ("assistant", "a b c d e f"))
    size = encoder.encode(long).num_labels
    [finding] = compute_token_stats(encoder, [short, long], max_new_tokens=size - 1)[1]
    assert finding.kind == "overlong-answer"
    assert f"an answer of {size} tokens" in finding.problem.message
    assert compute_token_stats(encoder, [short, long], max_new_tokens=size)[1] == []
    turns = example(("user", "q"), ("assistant", "a b c d e f"), ("user", "r"), ("assistant", "a b c d e f"))
    assert compute_token_stats(encoder, [turns], max_new_tokens=size)[1] == []  # each by itself


def test_a_template_that_does_not_end_answers(tmp_path: Path, example: Callable[..., Example]) -> None:
    folder = shutil.copytree(BUILT_IN_MODEL, tmp_path / "model")
    template = folder / "chat_template.json"
    text = template.read_text()
    assert text.count("<|im_end|>") >= 2
    template.write_text(text.replace("<|im_end|>", ""))
    rows = [example(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))]
    [finding] = compute_token_stats(Processor.from_folder(folder, ENCODE), rows, max_new_tokens=9)[1]
    assert finding.kind == "no-end"
    assert finding.problem.message.startswith("2 of 2 answers")
    assert compute_token_stats(Processor.from_folder(BUILT_IN_MODEL, ENCODE), rows, max_new_tokens=9)[1] == []


def test_the_tutorials_end_token_ends(example: Callable[..., Example]) -> None:
    other = Processor.from_folder(BUILT_IN_MODEL, ENCODE.model_copy(update={"end_token": "<|endoftext|>"}))
    assert compute_token_stats(other, [example(("user", "q"), ("assistant", "a"))], max_new_tokens=9)[1] == []


def test_a_row_that_cannot_be_encoded_is_named(encoder: Processor, tmp_path: Path) -> None:
    turns = (Turn("user", (Image(tmp_path / "gone.png"),)), Turn("assistant", ("a",)))
    tokens, [finding] = compute_token_stats(encoder, [Example("x", turns, Path("a.json"), 4)], max_new_tokens=9)
    assert tokens is None
    assert (finding.kind, finding.problem.row) == ("unusable", 4)


@pytest.mark.parametrize(
    ("values", "width", "count"),
    [
        ([7], 1, 1),
        ([1, 20], 1, 20),
        ([1, 21], 2, 11),
        ([137, 172], 2, 19),
        ([100, 2000], 100, 20),
        ([0, 2001], 200, 11),
    ],
)
def test_bins_are_few_round_and_hold_everything(values: list[int], width: int, count: int) -> None:
    found = compute_histogram(values)
    assert {high - low for low, high, _ in found} == {width}
    assert len(found) == count
    assert all(low % width == 0 for low, _, _ in found)
    assert sum(number for _, _, number in found) == len(values)
    assert found[0][0] <= min(values) < found[0][1]
    assert found[-1][0] <= max(values) < found[-1][1]
