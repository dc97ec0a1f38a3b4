import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.processing import token_stats
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_stats import TokenStats, compute_histogram, count_tokens
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import Example, Finding, Image, Turn

SETTINGS = ProcessorSettings(image_size=(56, 56), max_length=60)


def compute(
    processor: Processor, rows: Sequence[Example], *, max_new_tokens: int
) -> tuple[TokenStats | None, list[Finding]]:
    counts = count_tokens(processor, rows, max_new_tokens=max_new_tokens)
    return counts.stats, counts.findings


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(BUILT_IN_MODEL, SETTINGS)


def test_all_examples_are_counted_and_those_above_max_length_named(
    processor: Processor, example: Callable[..., Example]
) -> None:
    rows = [example(("user", 0, "q"), ("assistant", "a" * count)) for count in (1, 5, 90)]
    stats, findings = compute(processor, rows, max_new_tokens=200)
    lengths = [
        len(Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 56))).encode(row).input_ids)
        for row in rows
    ]
    assert stats is not None
    assert (stats.num_examples, stats.num_tokens, stats.num_image_tokens) == (3, sum(lengths), 12)
    assert (stats.shortest, stats.median, stats.longest) == (lengths[0], lengths[1], lengths[2])
    assert sum(count for _, _, count in stats.histogram) == 3
    [finding] = findings
    assert finding.kind == "over-budget"
    assert finding.is_blocking
    with pytest.raises(LorgnetteError) as caught:
        processor.encode(rows[2])
    assert finding.problem.message == caught.value.message  # the same words as training


def test_an_answer_longer_than_max_new_tokens_is_found(processor: Processor, example: Callable[..., Example]) -> None:
    short, long = example(("user", "q"), ("assistant", "a b")), example(("user", "q"), ("assistant", "a b c d e f"))
    length = processor.encode(long).num_labels
    [finding] = compute(processor, [short, long], max_new_tokens=length - 1)[1]
    assert finding.kind == "overlong-answer"
    assert f"an answer has {length} tokens" in finding.problem.message
    assert compute(processor, [short, long], max_new_tokens=length)[1] == []
    turns = example(("user", "q"), ("assistant", "a b c d e f"), ("user", "r"), ("assistant", "a b c d e f"))
    assert compute(processor, [turns], max_new_tokens=length)[1] == []  # each answer by itself


def test_answers_without_an_end_token_are_found(tmp_path: Path, example: Callable[..., Example]) -> None:
    folder = shutil.copytree(BUILT_IN_MODEL, tmp_path / "model")
    template = folder / "chat_template.json"
    text = template.read_text()
    assert text.count("<|im_end|>") >= 2
    template.write_text(text.replace("<|im_end|>", ""))
    rows = [example(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))]
    [finding] = compute(Processor.from_folder(folder, SETTINGS), rows, max_new_tokens=9)[1]
    assert finding.kind == "no-end"
    assert finding.problem.message.startswith("2 of 2 answers")
    assert compute(Processor.from_folder(BUILT_IN_MODEL, SETTINGS), rows, max_new_tokens=9)[1] == []


def test_the_tutorials_end_token_counts_as_an_end(example: Callable[..., Example]) -> None:
    tutorial = Processor.from_folder(BUILT_IN_MODEL, SETTINGS.model_copy(update={"eos_token": "<|endoftext|>"}))
    assert compute(tutorial, [example(("user", "q"), ("assistant", "a"))], max_new_tokens=9)[1] == []


def test_an_example_that_cannot_be_encoded_is_found(processor: Processor, tmp_path: Path) -> None:
    turns = (Turn("user", (Image(tmp_path / "gone.png"),)), Turn("assistant", ("a",)))
    stats, [finding] = compute(processor, [Example("x", turns, Path("a.json"), 4)], max_new_tokens=9)
    assert stats is None
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
def test_histogram_bins_are_few_and_round_and_hold_all_values(values: list[int], width: int, count: int) -> None:
    histogram = compute_histogram(values)
    assert {high - low for low, high, _ in histogram} == {width}
    assert len(histogram) == count
    assert all(low % width == 0 for low, _, _ in histogram)
    assert sum(number for _, _, number in histogram) == len(values)
    assert histogram[0][0] <= min(values) < histogram[0][1]
    assert histogram[-1][0] <= max(values) < histogram[-1][1]


def test_processes_count_what_one_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(number: int) -> Example:
        more = (Turn("user", ("And?",)), Turn("assistant", ("no",))) if number % 3 == 0 else ()
        answer = "long " * 200 if number % 7 == 5 else f"answer {number}"
        image = [Image(Path("gone.png"))] if number % 10 == 4 else []
        return Example("x", (Turn("user", (*image, "q")), Turn("assistant", (answer,)), *more), Path("a.json"), number)

    rows = list(map(build, range(30)))
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(max_length=80))
    expected = count_tokens(processor, rows, max_new_tokens=4)
    assert {finding.kind for finding in expected.findings} == {"unusable", "over-budget", "overlong-answer"}
    assert len(expected.lengths) < len(expected.num_skipped) == 30
    monkeypatch.setattr(token_stats, "MIN_SHARED_ROWS", 2)
    monkeypatch.setattr(token_stats, "_BLOCK_SIZE", 4)
    monkeypatch.setattr(token_stats, "count_processes", lambda: 2)
    assert count_tokens(processor, rows, max_new_tokens=4) == expected
    assert count_tokens(processor, rows[::-1], max_new_tokens=4) != expected
