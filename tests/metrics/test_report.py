"""Several answers to the same questions in numbers."""

from pathlib import Path

import pytest

from lorgnette.errors import UsageError
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.registry import CAPTION_METRICS, LATEX_METRICS, compare_answers
from lorgnette.metrics.report import classify_difference, compute_report, format_style_rows, parse_metric_names
from lorgnette.types import Example, Image, Turn


def question(name: str, *references: str) -> EvalPrompt:
    return EvalPrompt(Example(name, (Turn("user", (Image(Path(name)), "p")),), Path("d.csv"), 1), references)


ASKED = [
    question("a.png", "a dog runs on the grass", "a brown dog"),
    question("b.png"),
    question("c.png", "two red cars on a street"),
    question("d.png", "a man with a hat"),
]
GOOD = ["a dog runs on the grass", "anything", "two red cars on a street", "a man with a hat"]
BAD = ["the picture shows", "anything", "the picture shows", "the picture shows"]


def test_gaps_are_those_of_the_paired_test_and_turn_with_the_yardstick() -> None:
    found = compute_report(["ROUGE-L", "exact-match"], ASKED, [BAD, GOOD, GOOD])
    references = [ASKED[place].references for place in found.scored_indices]
    assert found.scored_indices == (0, 2, 3)
    bad, good = ([texts[place] for place in found.scored_indices] for texts in (BAD, GOOD))
    assert found.differences[1, 0] == tuple(compare_answers(["ROUGE-L", "exact-match"], bad, good, references))
    assert [gap.value for gap in found.differences[0, 1]] == [-(gap.value or 0) for gap in found.differences[1, 0]]
    low, high = found.differences[0, 1][0].interval or (0, 0)
    assert low <= (found.differences[0, 1][0].value or 0) <= high < 0
    assert found.scores[1][0].value == 1.0
    assert found.main_metric == "ROUGE-L"


def test_a_handful_is_never_sure() -> None:
    """However far apart: three pictures, and an interval that leaves out zero."""
    few, many = (compute_report(["ROUGE-L"], ASKED * n, [BAD * n, GOOD * n, GOOD * n]) for n in (1, 4))
    low, _ = few.differences[1, 0][0].interval or (0, 0)
    assert low > 0
    pairs = ((1, 0), (0, 1), (2, 1))
    assert [classify_difference(few.differences[pair][0]) for pair in pairs] == ["unsure"] * 3
    assert [classify_difference(many.differences[pair][0]) for pair in pairs] == ["better", "worse", "unsure"]


def test_lower_is_better_where_it_is() -> None:
    found = compute_report(["latex-edit-distance"], ASKED * 4, [BAD * 4, GOOD * 4])
    assert (found.differences[1, 0][0].value or 0) < 0
    assert classify_difference(found.differences[1, 0][0]) == "better"


def test_cider_leads_unless_it_means_nothing() -> None:
    assert compute_report(CAPTION_METRICS, ASKED, [GOOD]).main_metric == "CIDEr-D"
    assert compute_report(CAPTION_METRICS, ASKED[:2], [GOOD[:2]]).main_metric == "ROUGE-L"


def test_without_references_there_is_style_only() -> None:
    found = compute_report(CAPTION_METRICS, ASKED[1:2], [["yes"], ["no no"]])
    assert (found.scores, found.differences, found.main_metric, found.reference_style) == ((), {}, "", None)
    assert dict(format_style_rows(found.styles))["words, on average"] == ("1.0", "2.0")


def test_formulas_have_tokens_and_captions_words() -> None:
    for names, first in (
        (LATEX_METRICS, "tokens, on average"),
        ((*LATEX_METRICS, "ANLS"), "words, on average"),
        ((), "words, on average"),
    ):
        assert format_style_rows(compute_report(names, ASKED, [GOOD]).styles)[0][0] == first


def test_metrics_are_a_group_or_names() -> None:
    assert parse_metric_names(None, ("ROUGE-L",)) == ("ROUGE-L",)
    assert parse_metric_names("latex", ()) == LATEX_METRICS
    assert parse_metric_names("ANLS, token-F1", ()) == ("ANLS", "token-F1")
    assert parse_metric_names("latex,ANLS,ANLS,latex-BLEU", ()) == (*LATEX_METRICS, "ANLS")
    with pytest.raises(UsageError, match="no such metric · --metrics METEOR · caption, latex, demo, none, or one of"):
        parse_metric_names("METEOR", ())
