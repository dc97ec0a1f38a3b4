"""The verdict on a training: a table of cases. Each has a control, answers for which it must not say the same."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lorgnette.metrics.registry import expand_metric_names
from lorgnette.report.verdict import Points, Verdict, judge_training
from lorgnette.types import PredictionRow

LONG = (
    "The image depicts a big red rocket above a small yellow kite on a lake with gentle waves and nothing else at all."
)
FELL, ROSE, SAME = (((0.0, 2.0), (50.0, after)) for after in (0.5, 4.0, 2.0))


def build_rows(
    total: int, base: Sequence[str], tuned: Sequence[str], references: Sequence[Sequence[str]]
) -> list[PredictionRow]:
    """total rows, each about an image of its own; the texts repeat."""
    return [
        PredictionRow(
            str(i), (Path(f"{i}.png"),), "p", tuple(references[i % len(references)]), base[i % len(base)],
            tuned[i % len(tuned)],
        )
        for i in range(total)
    ]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """rows, metrics, evals: of the training; kind, parts: what the verdict must be and say. control: rows for which
    it must be of another kind."""

    rows: Sequence[PredictionRow]
    kind: str
    parts: Sequence[str]
    control: Sequence[PredictionRow]
    metrics: Sequence[str] = ("caption",)
    evals: Points = FELL

    def judge(self, rows: Sequence[PredictionRow]) -> Verdict:
        losses = [(1.0, 2.0), (50.0, 0.4)]
        return judge_training(rows, expand_metric_names(self.metrics), losses, self.evals)


KITES = [[f"a small {color} kite"] for color in ("red", "green", "blue", "yellow")]
RIGHT = [texts[0] for texts in KITES]
THREE_RIGHT = [*RIGHT[:3], "a big pink kite"]
LABELS = [["cat"], ["dog"]]
OBJECTS = [[f'{{"color": "{color}", "count": {n}}}'] for color in ("red", "blue") for n in (1, 2)]
WRONG_COUNT = [texts[0].replace('"count": ', '"count": 9') for texts in OBJECTS]
TWO_REFERENCES = [[f"a small {color} kite", f"one {color} kite in the sky"] for color in ("red", "green", "blue")]

CASES = {
    "the demo: short captions, three of four exact": Case(
        build_rows(64, [LONG], THREE_RIGHT, KITES), "worked",
        ["It worked.", "matches the reference word for word in 48 of 64 held-out images (0 before)",
         "answers are 6 times shorter", "In 100 new images like these, expect", "more such answers (95 % interval)"],
        control=build_rows(64, THREE_RIGHT, [LONG], KITES),
    ),
    "all four right, and four are few": Case(
        build_rows(4, [LONG], RIGHT, KITES), "unsure",
        ["4 held-out images are too few", "in 4 of 4 held-out images (0 before)", "With 4 images, chance could do"],
        control=build_rows(40, [LONG], RIGHT, KITES),
    ),
    "one image": Case(
        build_rows(1, [LONG], RIGHT, KITES), "unsure", ["1 held-out image is too few", "With 1 image, chance"],
        control=build_rows(12, [LONG], RIGHT, KITES),
    ),
    "nothing changed, not even the loss": Case(
        build_rows(30, RIGHT, RIGHT, KITES), "unchanged",
        ["Nothing changed.", "All 30 answers are the same as before.", "The eval loss is 2, 2 before."],
        control=build_rows(30, [LONG], RIGHT, KITES), evals=SAME,
    ),
    "no answer changed, and the loss hardly": Case(
        build_rows(30, RIGHT, RIGHT, KITES), "unchanged", ["No answer changed.", "The eval loss is 2.01, 2 before."],
        control=build_rows(30, [LONG], RIGHT, KITES), evals=[(0, 2.0), (10, 2.01)],
    ),
    "the loss fell, and no answer changed": Case(
        build_rows(30, [LONG], [LONG], KITES), "unchanged",
        ["No answer changed.", "All 30 answers are the same as before.", "The eval loss fell from 2 to 0.5."],
        control=build_rows(30, [LONG], RIGHT, KITES),
    ),
    "harm: the answers are worse": Case(
        build_rows(30, RIGHT, ["the the the the"], KITES), "harm",
        ["It did harm.", "in 0 of 30 held-out images (30 before)", "The eval loss rose from 2 to 4."],
        control=build_rows(30, ["the the the the"], RIGHT, KITES), evals=ROSE,
    ),
    "harm: four images, but the loss doubled": Case(
        build_rows(4, ["a kite of some kind"], ["the the the"], KITES), "harm",
        ["It did harm.", "The eval loss rose from 2 to 4."],
        control=build_rows(4, ["the the the"], ["the the the"], KITES), evals=ROSE,
    ),
    "a clear gain, but small": Case(
        build_rows(60, [*RIGHT, RIGHT[0], LONG, LONG, LONG], [*RIGHT, RIGHT[0], RIGHT[1], LONG, LONG], KITES),
        "helped", ["It helped a little.", "46 of 60 held-out images (39 before)", "expect 5 to 20 more"],
        control=build_rows(60, [LONG], RIGHT, KITES),
    ),
    "a tiny gain is chance": Case(
        [*build_rows(59, [LONG], [LONG], KITES), *build_rows(1, [LONG], RIGHT, KITES)], "unsure",
        ["Cannot say: chance could explain the difference.", "With 60 questions, chance could do this"],
        control=[*build_rows(30, [LONG], [LONG], KITES), *build_rows(30, [LONG], RIGHT, KITES)],
    ),
    "only capitals changed": Case(
        build_rows(30, ["a kite"], ["A kite!"], KITES), "unsure",
        ["The answers changed, but no score moved.", "word for word in 0 of 30 held-out images (0 before)"],
        control=build_rows(30, ["a kite"], RIGHT, KITES),
    ),
    "captions get closer, and none is exact": Case(
        build_rows(30, [LONG], ["a small kite"], KITES), "worked",
        ["the answer is closer to the reference in 30 of 30 held-out images, further in 0 (ROUGE-L 0.8",
         "The change in ROUGE-L lies between +0."],
        control=build_rows(30, ["a small kite"], [LONG], KITES),
    ),
    "garbage becomes other garbage": Case(
        build_rows(4, ["brown " * 20], ["to the of " * 30 + "kite"], KITES), "unsure",
        ["no answer to 4 held-out images is much closer to its reference, or further from it (ROUGE-L 0.0"],
        control=build_rows(40, ["to the a " * 9], RIGHT, KITES),
    ),
    "no answers any more": Case(
        build_rows(40, ["it is a cat"], [" ", ""], LABELS), "harm", ["It did harm: it answers nothing.", "0 of 40"],
        control=build_rows(40, ["it is a cat"], ["", "a"], LABELS), metrics=("label",),
    ),
    "labels": Case(
        build_rows(40, ["cat"], ["Cat.", "dog"], LABELS), "worked",
        ["the answer is the right label in 40 of 40 held-out images (20 before)"],
        control=build_rows(40, ["cat"], ["dog"], LABELS), metrics=("label",),
    ),
    "wrong labels become other wrong labels": Case(
        build_rows(40, ["it is a cat"], ["it is a bird"], LABELS), "unsure",
        ["The answers changed, but no score moved.", "the right label in 0 of 40 held-out images (0 before)"],
        control=build_rows(40, ["it is a cat"], ["cat"], LABELS), metrics=("label",),
    ),
    "JSON": Case(
        build_rows(40, WRONG_COUNT, [texts[0].replace(" ", "") for texts in OBJECTS], OBJECTS), "worked",
        ["every field of the answer is right in 40 of 40 held-out images (0 before)"],
        control=build_rows(40, WRONG_COUNT, ["{}"], OBJECTS), metrics=("json",),
    ),
    "JSON of the right form with wrong values": Case(
        build_rows(40, ["a cat"], ['{"color": "no", "count": 0}'], OBJECTS), "helped",
        ["It helped a little: json-valid improved.", "every field of the answer is right in 0 of 40",
         "json-valid (share of answers that are a JSON object) is 1.00, 0.00 before."],
        control=build_rows(40, ["a cat"], ["a dog"], OBJECTS), metrics=("json",),
    ),
    "the form of JSON is lost": Case(
        build_rows(40, ['{"color": "no", "count": 0}'], ["a cat"], OBJECTS), "harm",
        ["It did harm.", "json-valid (share of answers that are a JSON object) is 0.00, 1.00 before."],
        control=build_rows(40, ['{"color": "no", "count": 0}'], ['{"color": "yes", "count": 0}'], OBJECTS),
        metrics=("json",),
    ),
    "several references": Case(
        build_rows(30, [LONG], [TWO_REFERENCES[0][1], *RIGHT[1:3]], TWO_REFERENCES), "worked",
        ["matches a reference word for word in 30 of 30", "All 30 images agree."],
        control=build_rows(30, [LONG], [LONG], TWO_REFERENCES),
    ),
    "no metric of closeness": Case(
        build_rows(30, [LONG], RIGHT, KITES), "worked", ["in 30 of 30 held-out images"],
        control=build_rows(30, [LONG], ["no"], KITES), metrics=("none",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_true(name: str) -> None:
    case = CASES[name]
    verdict = case.judge(case.rows)
    assert verdict.kind == case.kind, verdict.text
    for part in case.parts:
        assert part in verdict.text
    assert verdict.text.startswith(verdict.headline)
    assert case.judge(case.control).kind != case.kind


def test_without_held_out_rows_it_cannot_be_said() -> None:
    verdict = judge_training([], ("ROUGE-L",), [(1.0, 2.5), (50.0, 0.25)], [])
    assert (verdict.kind, verdict.headline) == ("unsure", "Cannot say whether it worked.")
    assert "No image was held out" in verdict.evidence
    assert (
        "The training loss fell from 2.5 to 0.25, but it is of the images that it was trained on." in verdict.evidence
    )
    bare = [replace(row, references=()) for row in build_rows(4, [LONG], RIGHT, KITES)]
    assert "The held-out rows have no reference" in judge_training(bare, ("ROUGE-L",), [], []).evidence
    assert (
        judge_training([], ("ROUGE-L",), [], []).evidence == "No image was held out, so nothing measures the answers."
    )


def test_answers_to_what_was_trained_on_prove_nothing() -> None:
    rows = build_rows(40, [LONG], RIGHT, KITES)
    flags = [[i < count for i in range(40)] for count in (0, 3, 20)]
    none, few, half = (judge_training(rows, ("ROUGE-L",), [], FELL, trained_on=own) for own in flags)
    assert (none.kind, few.kind, half.kind) == ("worked", "worked", "unsure")
    assert "trained on" not in none.text
    assert "3 of the 40 were also trained on" in few.doubt
    assert half.headline == "Cannot say: it was asked about what it was trained on."


def test_a_step_chosen_on_the_same_rows_is_said() -> None:
    rows = build_rows(40, [LONG], RIGHT, KITES)
    chosen, last = (judge_training(rows, ("ROUGE-L",), [], FELL, is_step_chosen=flag) for flag in (True, False))
    assert "chosen on these same rows" in chosen.doubt
    assert "chosen" not in last.text


def test_better_answers_beside_a_higher_loss_are_both_said() -> None:
    rows = build_rows(40, [LONG], RIGHT, KITES)
    risen, fallen = (judge_training(rows, ("ROUGE-L",), [], evals) for evals in (ROSE, FELL))
    assert risen.kind == fallen.kind == "worked"
    assert "The eval loss rose from 2 to 4." in risen.evidence
    assert "eval loss" not in fallen.text


def test_scores_that_disagree_are_no_success() -> None:
    """More exact matches, and the other answers are far worse."""
    base = ["a small kite", "a small green", "a blue kite", "a small kite"]
    rows = build_rows(60, base, [RIGHT[0], "x", "y", "z"], KITES)
    verdict = judge_training(rows, ("exact-match", "ROUGE-L"), [], FELL)
    assert (verdict.kind, verdict.headline) == ("unsure", "Cannot say: one score rose, another fell.")
    better = build_rows(60, base, RIGHT, KITES)
    assert judge_training(better, ("exact-match", "ROUGE-L"), [], FELL).kind == "worked"


def test_several_questions_about_an_image_are_questions() -> None:
    rows = [replace(row, images=(Path("same.png"),)) for row in build_rows(40, [LONG], RIGHT, KITES)]
    assert "of 40 held-out questions" in judge_training(rows, ("ROUGE-L",), [], FELL).evidence
