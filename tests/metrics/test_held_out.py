"""Held-out answers in numbers: several captions of a picture are several references of one answer."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorgnette import config
from lorgnette.errors import UsageError
from lorgnette.metrics.held_out import (
    check_best_model_metric,
    compute_gains,
    expand_metric_names,
    score_before_after,
    select_sample_metric,
    select_tracked_metric,
)
from lorgnette.report.predictions import PredictionRow
from lorgnette.types import Example, Turn


def row(picture: str, references: str | tuple[str, ...], base: str | None, tuned: str | None) -> PredictionRow:
    given = (references,) if isinstance(references, str) else references
    return PredictionRow(picture, (Path(picture),), "COCO Yes:", given, base, tuned)


ROWS = [
    row(
        "a.png",
        ("a dog runs on the grass", "a brown dog running"),
        "The image depicts an animal.",
        "a dog runs on the grass",
    ),
    row("b.png", "two red cars on a street", "The image depicts vehicles.", "two red cars on a street"),
]


def test_caption_metrics_before_and_after() -> None:
    scores = {score.name: score for score in score_before_after(ROWS, ("caption",))}
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    assert scores["ROUGE-L"].after.startswith("1.000 (")
    assert float(scores["BLEU-1"].before.split()[0]) < 0.5
    assert all(score.is_better for score in scores.values())
    turned = [replace(row, base=row.tuned, tuned=row.base) for row in ROWS]
    assert not any(score.is_better for score in score_before_after(turned, ("caption",)))


def test_a_metric_that_means_nothing_says_why() -> None:
    [cider] = [score for score in score_before_after(ROWS[:1], ("caption",)) if score.name == "CIDEr-D"]
    assert (cider.before, cider.after, cider.is_better) == ("–", "–", False)
    assert "picture" in cider.note or "example" in cider.note


def test_formulas_are_held_token_by_token() -> None:
    rows = [row("a.png", "x ^ { 2 }", "x", "x^{2}"), row("b.png", r"\\alpha + 1", "b", r"\\alpha+2")]
    scores = {score.name: score for score in score_before_after(rows, ("latex",))}
    assert scores["latex-exact-match"].after.split()[0] == "0.500"
    assert scores["latex-edit-distance"].is_better  # the lower one


def test_gains_are_by_row_and_signed() -> None:
    rows = [*ROWS, row("c.png", (), "x", "y"), replace(ROWS[1], base=ROWS[1].tuned, tuned="no")]
    gained = compute_gains(rows, ("caption",))
    assert gained[0] is not None
    assert gained[0] > 0
    assert gained[2] is None
    assert gained[3] is not None
    assert gained[3] < 0
    assert compute_gains(rows, ("none",)) == [None] * 4
    [better] = compute_gains([row("a.png", "x+1", "y", "x+1")], ("latex",))
    assert better is not None
    assert better > 0


CAPTION = "A small red car to the left of a big green tree."


def test_the_demos_facts_are_read_off_the_references() -> None:
    rows = [
        row("a.png", CAPTION, "The image shows a big green tree. A small red car is left of the tree.", CAPTION),
        row("b.png", CAPTION, "nothing", "A small red car to the right of a big green tree."),
    ]
    scores = {score.name: score for score in score_before_after(rows, ("demo",))}
    assert (scores["both objects right"].before, scores["both objects right"].after) == ("1 of 2", "2 of 2")
    assert (scores["relation right"].after, scores["all three right"].after) == ("1 of 2", "1 of 2")
    assert scores["word for word the reference"].after == "1 of 2"
    assert not scores["words an answer"].is_better


def test_other_data_than_the_demos_has_no_facts() -> None:
    """`lorgnette demo data=mine.csv`: nobody drew those."""
    assert score_before_after(ROWS, ("demo",)) == []


@pytest.mark.parametrize(
    "rows", [[], [row("a.png", (), "x", "y")], [row("a.png", "r", None, "y")]], ids=["none", "no reference", "no base"]
)
def test_nothing_to_hold_against_is_no_score(rows: list[PredictionRow]) -> None:
    assert score_before_after(rows, ("caption",)) == []
    assert compute_gains(rows, ("caption",)) == [None] * len(rows)
    assert score_before_after(ROWS, ("none",)) == []


def test_words_are_groups_and_metrics() -> None:
    assert expand_metric_names(["latex", "ANLS", "latex-BLEU"]) == (
        "latex-exact-match", "latex-edit-distance", "latex-BLEU", "ANLS",
    )  # fmt: skip
    assert expand_metric_names(["none"]) == ()
    assert [select_sample_metric(words) for words in (["caption"], ["latex"], ["ANLS", "token-F1"], ["none"])] == [
        "ROUGE-L", "latex-edit-distance", "ANLS", None,
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"predict\.metrics=SPICE · caption, latex, demo, none, or one of BLEU-1"):
        expand_metric_names(["SPICE"])


def test_metrics_by_name_are_scored_and_sorted_by() -> None:
    rows = [row("a.png", "blue", "red", "blue"), row("b.png", "two cars", "two", "three")]
    scores = score_before_after(rows, ("ANLS", "token-F1"))
    assert [(score.name, score.after.split()[0]) for score in scores] == [("ANLS", "0.500"), ("token-F1", "0.500")]
    assert compute_gains(rows, ("token-F1",)) == [1.0, pytest.approx(-2 / 3)]
    assert [score.name for score in score_before_after(rows, ("demo", "ANLS"))] == ["ANLS"]


def test_a_metric_that_means_nothing_gives_no_gains() -> None:
    assert compute_gains(ROWS, ("box-IoU",)) == [None, None]


def test_what_is_watched() -> None:
    assert select_tracked_metric(config.load_settings(None, ["predict.metrics=ANLS,token-F1"])) == "ANLS"
    assert (
        select_tracked_metric(
            config.load_settings(None, ["predict.metrics=ANLS", "train.metric_for_best_model=token-F1"])
        )
        == "token-F1"
    )
    assert select_tracked_metric(config.load_settings(None, ["predict.metrics=none"])) is None


def held_out(*answers: str) -> list[Example]:
    return [
        Example(str(i), (Turn("user", ("p", str(i))), Turn("assistant", (text,))), Path("d.json"), i)
        for i, text in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("judge", "answers", "fits"),
    [
        ("CIDEr-D", ["a dog", "two cars"], True),
        ("CIDEr-D", ["a dog"], False),
        ("ROUGE-L", ["a dog"], True),
        ("ROUGE-L", [], False),
        ("box-IoU", ["a dog", "two cars"], False),
        ("box-IoU", ["a dog", "(1,2),(3,4)"], True),
        ("loss", [], True),
    ],
)
def test_a_metric_that_cannot_choose_is_told_of_before_the_training(judge: str, answers: list[str], fits: bool) -> None:
    chosen = config.load_settings(None, [f"train.metric_for_best_model={judge}"])
    if fits:
        check_best_model_metric(chosen, held_out(*answers))
    else:
        with pytest.raises(
            UsageError, match=f"no value for what is held out · train.metric_for_best_model={judge} · hold out more"
        ):
            check_best_model_metric(chosen, held_out(*answers))
