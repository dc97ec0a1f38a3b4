import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.config import Encode
from lorgnette.errors import LorgnetteError
from lorgnette.processing.processor import Encoder
from lorgnette.processing.token_stats import bins, counted
from lorgnette.resolve import BUILT_IN
from lorgnette.types import Example, Picture, Turn

ENCODE = Encode(size=(56, 56), max_tokens=60)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.of_folder(BUILT_IN, ENCODE)


def test_all_are_counted_and_those_over_the_budget_named(encoder: Encoder, example: Callable[..., Example]) -> None:
    rows = [example(("user", 0, "q"), ("assistant", "a" * count)) for count in (1, 5, 90)]
    tokens, findings = counted(encoder, rows, longest_answer=200)
    lengths = [len(Encoder.of_folder(BUILT_IN, Encode(size=(56, 56))).encode(row).tokens) for row in rows]
    assert tokens is not None
    assert (tokens.examples, tokens.total, tokens.of_pictures) == (3, sum(lengths), 12)
    assert (tokens.shortest, tokens.median, tokens.longest) == (lengths[0], lengths[1], lengths[2])
    assert sum(count for _, _, count in tokens.bins) == 3
    [finding] = findings
    assert finding.kind == "over-budget"
    assert finding.stops
    with pytest.raises(LorgnetteError) as refused:
        encoder.encode(rows[2])
    assert finding.problem.what == refused.value.what  # training's own words


def test_an_answer_longer_than_predictions(encoder: Encoder, example: Callable[..., Example]) -> None:
    short, long = example(("user", "q"), ("assistant", "a b")), example(("user", "q"), ("assistant", "a b c d e f"))
    size = encoder.encode(long).label_count
    [finding] = counted(encoder, [short, long], longest_answer=size - 1)[1]
    assert finding.kind == "overlong-answer"
    assert f"an answer of {size} tokens" in finding.problem.what
    assert counted(encoder, [short, long], longest_answer=size)[1] == []
    turns = example(("user", "q"), ("assistant", "a b c d e f"), ("user", "r"), ("assistant", "a b c d e f"))
    assert counted(encoder, [turns], longest_answer=size)[1] == []  # each by itself


def test_a_template_that_does_not_end_answers(tmp_path: Path, example: Callable[..., Example]) -> None:
    folder = shutil.copytree(BUILT_IN, tmp_path / "model")
    template = folder / "chat_template.json"
    text = template.read_text()
    assert text.count("<|im_end|>") >= 2
    template.write_text(text.replace("<|im_end|>", ""))
    rows = [example(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))]
    [finding] = counted(Encoder.of_folder(folder, ENCODE), rows, longest_answer=9)[1]
    assert finding.kind == "no-end"
    assert finding.problem.what.startswith("2 of 2 answers")
    assert counted(Encoder.of_folder(BUILT_IN, ENCODE), rows, longest_answer=9)[1] == []


def test_the_tutorials_end_token_ends(example: Callable[..., Example]) -> None:
    other = Encoder.of_folder(BUILT_IN, ENCODE.model_copy(update={"end_token": "<|endoftext|>"}))
    assert counted(other, [example(("user", "q"), ("assistant", "a"))], longest_answer=9)[1] == []


def test_a_row_that_cannot_be_encoded_is_named(encoder: Encoder, tmp_path: Path) -> None:
    turns = (Turn("user", (Picture(tmp_path / "gone.png"),)), Turn("assistant", ("a",)))
    tokens, [finding] = counted(encoder, [Example("x", turns, Path("a.json"), 4)], longest_answer=9)
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
    found = bins(values)
    assert {high - low for low, high, _ in found} == {width}
    assert len(found) == count
    assert all(low % width == 0 for low, _, _ in found)
    assert sum(number for _, _, number in found) == len(values)
    assert found[0][0] <= min(values) < found[0][1]
    assert found[-1][0] <= max(values) < found[-1][1]
