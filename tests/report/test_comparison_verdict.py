"""A candidate is called better only where chance does not explain it, and the doubt is said."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.report.comparison_verdict import judge_candidates
from lorgnette.report.verdict import judge_training
from lorgnette.types import Example, Image, Turn

METRICS = ("exact-match", "ROUGE-L")


def build_prompts(count: int, *references: str) -> list[EvalPrompt]:
    """One for each image, with a caption of its own."""
    return [
        EvalPrompt(
            Example(f"{i}", (Turn("user", (Image(Path(f"{i}.jpg")), "What?")),), Path("a.csv"), i),
            references or (f"a red car number {i}",),
        )
        for i in range(count)
    ]


def right(count: int, total: int) -> list[str]:
    """The right answer to the first `count` of `total` prompts, nonsense to the others."""
    return [f"a red car number {i}" if i < count else "brown brown brown" for i in range(total)]


def test_the_better_of_two() -> None:
    verdict, best = judge_candidates(["base", "runs/a"], build_prompts(40), [right(0, 40), right(36, 40)], METRICS)
    assert (verdict.kind, verdict.headline, best) == ("worked", "runs/a is better than base.", 1)
    assert verdict.evidence == (
        "The answer matches the reference word for word in 36 of 40 images with runs/a, 0 with base."
    )
    assert "95 % interval" in verdict.doubt
    turned, best = judge_candidates(["runs/a", "base"], build_prompts(40), [right(36, 40), right(0, 40)], METRICS)
    assert (turned.headline, turned.evidence, best) == (verdict.headline, verdict.evidence, 0)


def test_an_adapter_that_does_harm() -> None:
    answers = [right(30, 40), right(2, 40)]
    verdict, _ = judge_candidates(["base", "runs/a"], build_prompts(40), answers, METRICS, tuned=[False, True])
    assert (verdict.kind, verdict.headline) == ("harm", "base is better than runs/a.")


@pytest.mark.parametrize("total", [1, 3, 12])
def test_few_images_show_no_difference(total: int) -> None:
    answers, count = [right(0, total), right(-(-total // 10), total)], -(-total // 10)
    verdict, _ = judge_candidates(["base", "runs/a"], build_prompts(total), answers, METRICS)
    noun = "image" if total == 1 else "images"
    assert (verdict.kind, verdict.headline) == ("unsure", f"No difference that {total} {noun} can show.")
    assert f"in {count} of {total} images with runs/a, 0 with base" in verdict.evidence
    assert "chance could do this" in verdict.doubt


def test_the_same_answers_and_no_references() -> None:
    same, best = judge_candidates(["a", "b", "c"], build_prompts(5), [right(2, 5)] * 3, METRICS)
    assert (same.text, best) == ("No difference. All 3 give the same answers to 5 images.", None)
    bare = [EvalPrompt(prompt.example, ()) for prompt in build_prompts(5)]
    verdict, best = judge_candidates(["a", "b"], bare, [right(2, 5), right(3, 5)], METRICS)
    assert (verdict.kind, best) == ("unsure", None)
    assert "no reference" in verdict.evidence


def test_the_best_of_three() -> None:
    names, answers = ["base", "runs/a", "runs/b"], [right(0, 60), right(55, 60), right(53, 60)]
    verdict, best = judge_candidates(names, build_prompts(60), answers, METRICS)
    assert verdict.headline == "runs/a is better than base; beside runs/b, 60 images show no clear difference."
    assert (verdict.kind, best) == ("helped", 1)
    assert verdict.evidence.endswith("in 55 of 60 images with runs/a, 53 with runs/b, 0 with base.")
    assert verdict.doubt.startswith("Beside runs/b: ")
    assert "chosen on these same images" in verdict.doubt
    far_answers = [*answers[:2], right(20, 60)]
    verdict, _ = judge_candidates(names, build_prompts(60), far_answers, METRICS)
    assert (verdict.kind, verdict.headline) == ("worked", "runs/a is better than runs/b and base.")


def test_answers_that_are_closer_but_not_equal() -> None:
    answers = [["brown"] * 30, ["a red car number"] * 30]
    verdict, _ = judge_candidates(["base", "runs/a"], build_prompts(30), answers, METRICS)
    assert verdict.headline == "runs/a is better than base."
    assert verdict.evidence.startswith(
        "With runs/a the answer is closer to the reference in 30 of 30 images, further in 0 (ROUGE-L 0."
    )


def test_one_image_and_no_closer_answer_are_said_in_words() -> None:
    one, _ = judge_candidates(["base", "runs/a"], build_prompts(1), [["brown"], ["a red car number 0"]], METRICS)
    assert "in 1 of 1 images with runs/a" in one.evidence
    seen, _ = judge_candidates(
        ["base", "runs/a"], build_prompts(1), [["brown"], ["red"]], METRICS, trained_on=[(), [True]]
    )
    assert seen.headline == "Cannot say: runs/a was trained on this image."
    none, _ = judge_candidates(["base", "runs/a"], build_prompts(8), [["brown"] * 8, ["green"] * 8], ("ROUGE-L",))
    assert "closer to the reference in 0" not in none.evidence


@pytest.mark.parametrize(
    ("answer", "text"), [("a", "shorter than the references (1 and 5 words)"), ("a red car number", "")]
)
def test_answers_of_another_length_than_the_references_are_in_doubt(answer: str, text: str) -> None:
    """One common word is closer to every caption than nonsense, and no caption."""
    answers = [["brown"] * 30, [answer] * 30]
    verdict, _ = judge_candidates(["base", "runs/a"], build_prompts(30), answers, METRICS)
    assert verdict.headline == "runs/a is better than base."
    assert (text in verdict.doubt) if text else ("than the references" not in verdict.doubt)


def test_what_was_trained_on_is_no_evidence() -> None:
    answers, seen = [right(0, 40), right(36, 40)], [True] * 30 + [False] * 10
    verdict, _ = judge_candidates(["base", "runs/a"], build_prompts(40), answers, METRICS, trained_on=[(), seen])
    assert (verdict.kind, verdict.headline) == (
        "unsure", "Cannot say: runs/a was trained on most of these images.",
    )  # fmt: skip
    few = [True] * 4 + [False] * 36
    verdict, _ = judge_candidates(["base", "runs/a"], build_prompts(40), answers, METRICS, trained_on=[(), few])
    assert verdict.headline == "runs/a is better than base."
    assert "runs/a was trained on 4 of the 40" in verdict.doubt


def test_answers_that_repeat_themselves_are_no_clear_gain() -> None:
    prompts = [
        replace(prompt, references=(f"a dog{i} with a ball{i} of wool",)) for i, prompt in enumerate(build_prompts(40))
    ]
    answers = [["brown brown"] * 40, ["a with a of wool"] * 40]
    verdict, best = judge_candidates(["base", "runs/a"], prompts, answers, METRICS)
    assert (verdict.kind, verdict.headline, best) == ("unsure", "runs/a is better than base.", 1)
    assert "But the answers repeat themselves: 4 distinct words, 84 in the references." in verdict.doubt
    rows = [prompt.build_row() for prompt in prompts]
    pairs = zip(rows, *answers, strict=True)
    rows = [replace(row, base=base, tuned=tuned) for row, base, tuned in pairs]
    assert "repeat themselves" in judge_training(rows, METRICS, [], []).doubt
