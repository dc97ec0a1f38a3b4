"""Reports on several candidates, and scores before and after training."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorgnette.errors import UsageError
from lorgnette.metrics.answer_tables import AnswerTables
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.registry import CAPTION_METRICS, LATEX_METRICS, compare_answers
from lorgnette.metrics.report import (
    classify_difference,
    compute_gains,
    compute_report,
    count_before_after,
    format_style_rows,
    parse_metric_names,
    score_before_after,
)
from lorgnette.types import Example, Image, PredictionRow, Turn


def build_prompt(name: str, *references: str) -> EvalPrompt:
    return EvalPrompt(Example(name, (Turn("user", (Image(Path(name)), "p")),), Path("d.csv"), 1), references)


PROMPTS = [
    build_prompt("a.png", "a dog runs on the grass", "a brown dog"),
    build_prompt("b.png"),
    build_prompt("c.png", "two red cars on a street"),
    build_prompt("d.png", "a man with a hat"),
]


def repeat(prompts: list[EvalPrompt], count: int) -> list[EvalPrompt]:
    """About other images each time."""
    return [build_prompt(f"{n}/{prompt.example.id}", *prompt.references) for n in range(count) for prompt in prompts]


GOOD = ["a dog runs on the grass", "anything", "two red cars on a street", "a man with a hat"]
BAD = ["the image shows", "anything", "the image shows", "the image shows"]


def test_differences_are_paired_and_antisymmetric() -> None:
    report = compute_report(["ROUGE-L", "exact-match"], PROMPTS, [BAD, GOOD, GOOD])
    references = [PROMPTS[i].references for i in report.scored_indices]
    assert report.scored_indices == (0, 2, 3)
    bad, good = ([texts[i] for i in report.scored_indices] for texts in (BAD, GOOD))
    assert report.differences[1, 0] == tuple(compare_answers(["ROUGE-L", "exact-match"], bad, good, references))
    assert [diff.value for diff in report.differences[0, 1]] == [
        -(diff.value or 0) for diff in report.differences[1, 0]
    ]
    low, high = report.differences[0, 1][0].interval or (0, 0)
    assert low <= (report.differences[0, 1][0].value or 0) <= high < 0
    assert report.scores[1][0].value == 1.0
    assert report.main_metric == "ROUGE-L"


def test_a_few_examples_are_never_significant() -> None:
    """Even if they differ a lot: three images, and an interval that excludes 0."""
    few, many = (compute_report(["ROUGE-L"], repeat(PROMPTS, n), [BAD * n, GOOD * n, GOOD * n]) for n in (1, 4))
    low, _ = few.differences[1, 0][0].interval or (0, 0)
    assert low > 0
    pairs = ((1, 0), (0, 1), (2, 1))
    assert [classify_difference(few.differences[pair][0]) for pair in pairs] == ["unsure"] * 3
    assert [classify_difference(many.differences[pair][0]) for pair in pairs] == ["better", "worse", "unsure"]


def test_a_lower_edit_distance_is_better() -> None:
    report = compute_report(["latex-edit-distance"], repeat(PROMPTS, 4), [BAD * 4, GOOD * 4])
    assert (report.differences[1, 0][0].value or 0) < 0
    assert classify_difference(report.differences[1, 0][0]) == "better"


def test_cider_is_the_main_metric_unless_undefined() -> None:
    assert compute_report(CAPTION_METRICS, PROMPTS, [GOOD]).main_metric == "CIDEr-D"
    assert compute_report(CAPTION_METRICS, PROMPTS[:2], [GOOD[:2]]).main_metric == "ROUGE-L"


def test_without_references_there_is_style_only() -> None:
    report = compute_report(CAPTION_METRICS, PROMPTS[1:2], [["yes"], ["no no"]])
    assert (report.scores, report.differences, report.main_metric, report.reference_style) == ((), {}, "", None)
    assert dict(format_style_rows(report))["words per answer"] == ("1.0", "2.0", "–")


@pytest.mark.parametrize(
    ("names", "unit"), [(LATEX_METRICS, "tokens"), ((*LATEX_METRICS, "ANLS"), "words"), ((), "words")]
)
def test_style_counts_tokens_of_formulas_and_words_of_captions(names: tuple[str, ...], unit: str) -> None:
    assert format_style_rows(compute_report(names, PROMPTS, [GOOD]))[0][0] == f"{unit} per answer"


def test_option_metrics_takes_groups_and_names() -> None:
    assert parse_metric_names(None, ("ROUGE-L",)) == ("ROUGE-L",)
    assert parse_metric_names("latex", ()) == LATEX_METRICS
    assert parse_metric_names("ANLS, token-F1", ()) == ("ANLS", "token-F1")
    assert parse_metric_names("latex,ANLS,ANLS,latex-BLEU", ()) == (*LATEX_METRICS, "ANLS")
    groups = "auto, caption, label, json, box, latex, demo, none"
    with pytest.raises(UsageError, match=f"no such metric · --metrics METEOR · {groups}, or one of"):
        parse_metric_names("METEOR", ())


def build_row(image: str, references: str | tuple[str, ...], base: str | None, tuned: str | None) -> PredictionRow:
    texts = (references,) if isinstance(references, str) else references
    return PredictionRow(image, (Path(image),), "COCO Yes:", texts, base, tuned)


ROWS = [
    build_row(
        "a.png",
        ("a dog runs on the grass", "a brown dog running"),
        "The image depicts an animal.",
        "a dog runs on the grass",
    ),
    build_row("b.png", "two red cars on a street", "The image depicts vehicles.", "two red cars on a street"),
]


def repeat_rows(rows: list[PredictionRow], count: int) -> list[PredictionRow]:
    """About other images each time."""
    return [replace(row, images=(Path(f"{n}/{row.id}"),)) for n in range(count) for row in rows]


def test_caption_metrics_before_and_after() -> None:
    scores = {score.name: score for score in score_before_after(ROWS, ("caption",))}
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    assert scores["ROUGE-L"].after == "1.000"  # both are: resampling shows no uncertainty
    assert float(scores["BLEU-1"].before.split()[0]) < 0.5
    assert all(score.description for score in scores.values())
    assert {score.change for score in scores.values()} == {"unsure"}  # two images: chance could do this


def test_a_score_is_better_only_if_chance_does_not_explain_it() -> None:
    rouge, cider = (score for score in score_before_after(repeat_rows(ROWS, 4), ("ROUGE-L", "CIDEr-D")))
    assert (rouge.change, cider.change) == ("better", "better")
    assert rouge.difference.startswith("+")
    assert " (+" in rouge.difference
    swapped = [replace(row, base=row.tuned, tuned=row.base) for row in repeat_rows(ROWS, 4)]
    assert [score.change for score in score_before_after(swapped, ("ROUGE-L",))] == ["worse"]
    # A gain in one of 32 rows is a gain in the mean, and no news.
    same = [replace(row, tuned=row.base) for row in repeat_rows(ROWS, 16)]
    [score] = score_before_after([*ROWS[:1], *same], ("ROUGE-L",))
    assert score.after > score.before
    assert score.change == "unsure"


def test_copies_of_images_are_no_new_evidence(tmp_path: Path) -> None:
    """Eight rows about two images, which are there four times: as files, or as questions about one file."""
    rows = repeat_rows(ROWS, 4)
    files = [tmp_path / f"{i}.png" for i in range(8)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]))
    own, copied = ([replace(row, images=(file,)) for row, file in zip(rows, part, strict=True)]
                   for part in (files, files[:2] * 4))  # fmt: skip
    assert [row.change for row in score_before_after(own, ("ROUGE-L",))] == ["better"]
    [same_file] = score_before_after(copied, ("ROUGE-L",))
    for i, file in enumerate(files):
        file.write_bytes(bytes([i % 2]))
    [same_content] = score_before_after(own, ("ROUGE-L",))
    assert same_file == same_content
    assert same_file.change == "unsure"


def test_an_undefined_metric_has_a_note() -> None:
    [cider] = [score for score in score_before_after(ROWS[:1], ("caption",)) if score.name == "CIDEr-D"]
    assert (cider.before, cider.after, cider.change, cider.difference) == ("–", "–", "unsure", "")
    assert "several images" in cider.note


def test_formulas_are_compared_token_by_token() -> None:
    rows = [build_row("a.png", "x ^ { 2 }", "x", "x^{2}"), build_row("b.png", r"\\alpha + 1", "b", r"\\alpha+2")]
    scores = {score.name: score for score in score_before_after(rows, ("latex",))}
    assert scores["latex-exact-match"].after.split()[0] == "0.500"
    assert scores["latex-edit-distance"].difference.startswith("−")
    many = {score.name: score for score in score_before_after(repeat_rows(rows, 4), ("latex",))}
    assert many["latex-edit-distance"].change == "better"  # it is lower
    assert many["latex-edit-distance"].description.endswith("lower is better")


def test_gains_are_signed_and_per_row() -> None:
    rows = [*ROWS, build_row("c.png", (), "x", "y"), replace(ROWS[1], base=ROWS[1].tuned, tuned="no")]
    gains = compute_gains(rows, ("caption",))
    assert gains[0] is not None
    assert gains[0] > 0
    assert gains[2] is None
    assert gains[3] is not None
    assert gains[3] < 0
    assert compute_gains(rows, ("none",)) == [None] * 4
    [gain] = compute_gains([build_row("a.png", "x+1", "y", "x+1")], ("latex",))
    assert gain is not None
    assert gain > 0


@pytest.mark.parametrize(
    "rows",
    [[], [build_row("a.png", (), "x", "y")], [build_row("a.png", "r", None, "y")]],
    ids=["no rows", "no reference", "no base"],
)
def test_rows_without_references_or_answers_have_no_scores(rows: list[PredictionRow]) -> None:
    assert score_before_after(rows, ("caption",)) == []
    assert compute_gains(rows, ("caption",)) == [None] * len(rows)
    assert score_before_after(ROWS, ("none",)) == []


def test_metrics_by_name_are_scored_and_used_for_gains() -> None:
    rows = [build_row("a.png", "blue", "red", "blue"), build_row("b.png", "two cars", "two", "three")]
    scores = score_before_after(rows, ("ANLS", "token-F1"))
    assert [(score.name, score.after.split()[0]) for score in scores] == [("ANLS", "0.500"), ("token-F1", "0.500")]
    assert compute_gains(rows, ("token-F1",)) == [1.0, pytest.approx(-2 / 3)]


def test_an_undefined_metric_gives_no_gains() -> None:
    assert compute_gains(ROWS, ("box-IoU",)) == [None, None]


def test_labels_and_fields_are_counted_before_and_after() -> None:
    """Only for their metrics, and only over the rows with references and both answers."""
    rows = [
        build_row("a.png", "cat", "a cat", "cat"),
        build_row("b.png", "dog", "dog", "cat"),
        build_row("c.png", "dog", None, "dog"),
    ]
    before, after = count_before_after(rows, ("label",), ["fish"]).labels
    assert before.confusion == ((0, 0, 0, 1), (0, 1, 0, 0), (0, 0, 0, 0))
    assert after.confusion == ((1, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 0))
    assert count_before_after(rows, ("caption", "ANLS")) == AnswerTables()
    assert count_before_after(rows[2:], ("label",)) == AnswerTables()
    objects = [build_row("a.png", '{"a": 1}', "a is 1", '{"a": 1}')]
    assert [field.num_valid for field in count_before_after(objects, ("json-valid",)).fields] == [0, 1]


def test_a_report_counts_the_labels_of_each_candidate() -> None:
    prompts = [build_prompt("a.png", "cat"), build_prompt("b.png"), build_prompt("c.png", "dog")]
    report = compute_report(["accuracy"], prompts, [["cat", "x", "cat"], ["cat", "x", "dog"]])
    assert [counts.accuracy for counts in report.tables.labels] == [0.5, 1.0]
    assert report.tables.fields == ()
    assert report.main_metric == "accuracy"
