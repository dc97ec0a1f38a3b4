"""Held-out answers in numbers: several captions of a picture are several references of one answer."""

from pathlib import Path

import pytest

from lorgnette.report.predictions import PredictionRow
from lorgnette.run.scoring import scored


def row(picture: str, reference: str, base: str | None, tuned: str | None) -> PredictionRow:
    return PredictionRow(reference, (Path(picture),), "COCO Yes:", reference, base, tuned)


ROWS = [
    row("a.png", "a dog runs on the grass", "The image depicts an animal.", "a dog runs on the grass"),
    row("a.png", "a brown dog running", "The image depicts an animal.", "a dog runs on the grass"),
    row("b.png", "two red cars on a street", "The image depicts vehicles.", "two red cars on a street"),
]


def test_caption_metrics_before_and_after() -> None:
    scores = {name: (before, after) for name, before, after in scored(ROWS, "caption")}
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    assert scores["ROUGE-L"][1].startswith("1.000 (")
    assert float(scores["BLEU-1"][0].split()[0]) < 0.5


def test_formulas_are_held_token_by_token() -> None:
    rows = [row("a.png", "x ^ { 2 }", "x", "x^{2}"), row("b.png", r"\\alpha + 1", "b", r"\\alpha+2")]
    scores = {name: after.split()[0] for name, _, after in scored(rows, "latex")}
    assert scores["latex-exact-match"] == "0.500"


@pytest.mark.parametrize(
    "rows", [[], [row("a.png", "", "x", "y")], [row("a.png", "r", None, "y")]], ids=["none", "no reference", "no base"]
)
def test_nothing_to_hold_against_is_no_score(rows: list[PredictionRow]) -> None:
    assert scored(rows, "caption") == []
    assert scored(ROWS, "none") == []
