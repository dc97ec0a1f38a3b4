"""Several answers to the same questions in numbers."""

from pathlib import Path

import pytest

from lorgnette.errors import UsageError
from lorgnette.metrics.eval_prompts import Question
from lorgnette.metrics.registry import CAPTION, LATEX, compare
from lorgnette.metrics.report import measured, style_rows, verdict, wanted
from lorgnette.types import Example, Picture, Turn


def question(name: str, *references: str) -> Question:
    return Question(Example(name, (Turn("user", (Picture(Path(name)), "p")),), Path("d.csv"), 1), references)


ASKED = [
    question("a.png", "a dog runs on the grass", "a brown dog"),
    question("b.png"),
    question("c.png", "two red cars on a street"),
    question("d.png", "a man with a hat"),
]
GOOD = ["a dog runs on the grass", "anything", "two red cars on a street", "a man with a hat"]
BAD = ["the picture shows", "anything", "the picture shows", "the picture shows"]


def test_gaps_are_those_of_the_paired_test_and_turn_with_the_yardstick() -> None:
    found = measured(["ROUGE-L", "exact-match"], ASKED, [BAD, GOOD, GOOD])
    references = [ASKED[place].references for place in found.judged]
    assert found.judged == (0, 2, 3)
    bad, good = ([texts[place] for place in found.judged] for texts in (BAD, GOOD))
    assert found.gaps[1, 0] == tuple(compare(["ROUGE-L", "exact-match"], bad, good, references))
    assert [gap.value for gap in found.gaps[0, 1]] == [-(gap.value or 0) for gap in found.gaps[1, 0]]
    low, high = found.gaps[0, 1][0].interval or (0, 0)
    assert low <= (found.gaps[0, 1][0].value or 0) <= high < 0
    assert found.scores[1][0].value == 1.0
    assert found.main == "ROUGE-L"


def test_a_handful_is_never_sure() -> None:
    """However far apart: three pictures, and an interval that leaves out zero."""
    few, many = (measured(["ROUGE-L"], ASKED * n, [BAD * n, GOOD * n, GOOD * n]) for n in (1, 4))
    low, _ = few.gaps[1, 0][0].interval or (0, 0)
    assert low > 0
    pairs = ((1, 0), (0, 1), (2, 1))
    assert [verdict(few.gaps[pair][0]) for pair in pairs] == ["unsure"] * 3
    assert [verdict(many.gaps[pair][0]) for pair in pairs] == ["better", "worse", "unsure"]


def test_lower_is_better_where_it_is() -> None:
    found = measured(["latex-edit-distance"], ASKED * 4, [BAD * 4, GOOD * 4])
    assert (found.gaps[1, 0][0].value or 0) < 0
    assert verdict(found.gaps[1, 0][0]) == "better"


def test_cider_leads_unless_it_means_nothing() -> None:
    assert measured(CAPTION, ASKED, [GOOD]).main == "CIDEr-D"
    assert measured(CAPTION, ASKED[:2], [GOOD[:2]]).main == "ROUGE-L"


def test_without_references_there_is_style_only() -> None:
    found = measured(CAPTION, ASKED[1:2], [["yes"], ["no no"]])
    assert (found.scores, found.gaps, found.main, found.reference_style) == ((), {}, "", None)
    assert dict(style_rows(found.styles))["words, on average"] == ("1.0", "2.0")


def test_formulas_have_tokens_and_captions_words() -> None:
    for names, first in (
        (LATEX, "tokens, on average"),
        ((*LATEX, "ANLS"), "words, on average"),
        ((), "words, on average"),
    ):
        assert style_rows(measured(names, ASKED, [GOOD]).styles)[0][0] == first


def test_metrics_are_a_group_or_names() -> None:
    assert wanted(None, ("ROUGE-L",)) == ("ROUGE-L",)
    assert wanted("latex", ()) == LATEX
    assert wanted("ANLS, token-F1", ()) == ("ANLS", "token-F1")
    assert wanted("latex,ANLS,ANLS,latex-BLEU", ()) == (*LATEX, "ANLS")
    with pytest.raises(UsageError, match="no such metric · --metrics METEOR · caption, latex, demo, none, or one of"):
        wanted("METEOR", ())
