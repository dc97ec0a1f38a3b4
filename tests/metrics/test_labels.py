"""Accuracy, macro-F1 and confusion of labels, computed a second way; which references are labels."""

import random
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pytest

from lorgnette.metrics import labels
from lorgnette.metrics.labels import classify, count_labels, find_labels, normalize_label
from lorgnette.metrics.registry import compare_answers, compute_scores

NAMES = ["bird", "cat", "dog", "fish"]


def draw_answers(num_examples: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """(answers, some of which are no label; references)"""
    rng = random.Random(seed)
    references = [rng.choices(NAMES, weights=[8, 4, 2, 1])[0] for _ in range(num_examples)]
    answers = [rng.choice([text, text, *NAMES, "an animal"]) for text in references]
    return answers, [[text] for text in references]


def compute_f1(answers: Sequence[str], truths: Sequence[str], label: str) -> float:
    """From precision and recall, as scikit-learn's documentation defines them; zero_division=0."""
    both = sum(a == t == label for a, t in zip(answers, truths, strict=True))
    precision = both / answers.count(label) if label in answers else 0.0
    recall = both / truths.count(label) if label in truths else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(20))
def test_macro_f1_is_scikit_learns(seed: int) -> None:
    """f1_score(references, answers, labels=labels of the references, average="macro", zero_division=0)."""
    answers, references = draw_answers(5 + 3 * seed, seed)
    truths = [text for [text] in references]
    used = sorted(set(truths))
    expected = fmean(compute_f1(answers, truths, label) for label in used)
    accuracy, macro_f1 = classify(answers, references)
    assert macro_f1.value == pytest.approx(expected, abs=1e-12)
    assert accuracy.value == fmean(a == t for a, t in zip(answers, truths, strict=True))
    counts = count_labels(answers, references)
    assert (counts.accuracy, counts.macro_f1) == pytest.approx((accuracy.value, macro_f1.value), abs=1e-12)
    # Negative controls: means over examples, and with `other` as a label, are other numbers.
    if seed > 5:
        weighted = fmean(compute_f1(answers, truths, truth) for truth in truths)
        with_other = fmean(compute_f1(answers, truths, label) for label in [*used, "an animal"])
        assert abs(weighted - expected) > 1e-3
        assert abs(with_other - expected) > 1e-3


def test_known_values() -> None:
    """scikit-learn's own example: y_true = 0 1 2 0 1 2, y_pred = 0 2 1 0 0 1 has a macro-F1 of 0.26666…"""
    truths, answers = list("012012"), list("021001")
    _, macro_f1 = classify(answers, [[text] for text in truths])
    assert macro_f1.value == pytest.approx(0.26666666666666666)


def test_resampled_sets_score_as_if_computed_anew() -> None:
    """A metric is a sum: the counts of a drawn set give its value, labels that it lacks left out."""
    answers, references = draw_answers(12, 3)
    _, macro_f1 = classify(answers, references)
    rng = np.random.default_rng(0)
    for _ in range(50):
        drawn = rng.integers(12, size=12)
        truths, own = [references[i][0] for i in drawn], [answers[i] for i in drawn]
        present = {text for text in [*truths, *own] if text in {t for [t] in references}}
        expected = fmean(compute_f1(own, truths, label) for label in present)
        [value] = macro_f1.compute_value(macro_f1.counts[drawn].sum(axis=0, keepdims=True))
        assert value == pytest.approx(expected, abs=1e-12)


def test_scores_have_intervals_and_differences() -> None:
    answers, references = draw_answers(60, 1)
    truths = [text for [text] in references]
    for score in compute_scores(["accuracy", "macro-F1"], answers, references):
        assert score.value is not None
        assert score.interval is not None
        assert score.interval[0] < score.value < score.interval[1]
    for difference in compare_answers(["accuracy", "macro-F1"], answers, truths, references):
        assert difference.value is not None
        assert difference.value > 0
        assert difference.p_value is not None
        assert difference.p_value < 0.01


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("cat", True), ("Cat.", True), (" CAT 。\n", True), ("cat .", True), ("a cat", False), ("cats", False),
        ("", False), ("cat!", False), ("dog", False), ("tabby", True),
    ],
)  # fmt: skip
def test_what_equals_a_label(answer: str, is_right: bool) -> None:
    """Case, white space and a final stop do not matter; with several references each is right."""
    accuracy, _ = classify([answer, "dog"], [["cat", "tabby"], ["dog"]])
    assert accuracy.per_example.tolist() == [is_right, 1]


def test_names_of_folders_on_macos_are_the_same_labels() -> None:
    assert normalize_label("cafe\u0301") == normalize_label("Café") == "café"


def test_the_confusion_table() -> None:
    references = [["Cat"], ["cat"], ["cat"], ["dog"], ["dog"], ["bird"]]
    counts = count_labels(["cat.", "dog", "I see a cat", "dog", "dog", "I see a cat"], references, ["fish", "dog"])
    assert counts.labels == ("bird", "cat", "dog", "fish")
    assert counts.confusion == ((0, 0, 0, 0, 1), (0, 1, 1, 0, 1), (0, 0, 2, 0, 0), (0, 0, 0, 0, 0))
    assert (counts.num_others, counts.others) == (2, (("I see a cat", 2),))
    assert counts.mistakes == [("cat", "dog", 1)]
    rows = {row.label: row for row in counts.rows}
    cat, dog = rows["cat"], rows["dog"]
    assert (cat.support, cat.num_answers, cat.num_correct) == (3, 1, 1)
    assert (cat.precision, cat.recall, cat.f1) == (1.0, pytest.approx(1 / 3), 0.5)
    assert (dog.precision, dog.recall, dog.f1) == (pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert (rows["bird"].precision, rows["bird"].recall, rows["bird"].f1) == (None, 0.0, 0.0)
    assert (rows["fish"].precision, rows["fish"].recall) == (None, None)
    assert counts.accuracy == 0.5
    assert counts.macro_f1 == pytest.approx((0 + 0.5 + 0.8) / 3)  # fish has no example
    assert counts.as_dict()["labels"][1]["support"] == 3


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["cat", "dog"] * 2, ("cat", "dog")),
        (["Cat", "cat", "cat", "dog.", "dog."], ("cat", "dog.")),
        (["cat"] * 5 + ["dog"] * 4 + ["bird"], ("bird", "cat", "dog")),  # a rare label
        (["cat"] * 3 + ["dog", "bird", "fish"], ()),  # three that are there once
        ([f"label {i}" for i in range(50)] * 2, tuple(sorted(f"label {i}" for i in range(50)))),
        ([f"label {i}" for i in range(51)] * 2, ()),
        ([f"a photograph of thing {i}" for i in range(30)], ()),
        (["cat"] * 5, ()),
        (["cat", "cat", "dog"], ()),
        (["cat", "dog"], ()),
        (["x" * 50, "y"] * 2, ("x" * 50, "y")),
        (["x" * 51, "y"] * 2, ()),
        (["one\ntwo", "y"] * 2, ()),
        (["", "y"] * 2, ()),
        ([], ()),
    ],
)
def test_which_references_are_labels(texts: list[str], expected: tuple[str, ...]) -> None:
    assert find_labels([[text] for text in texts]) == expected


def test_a_text_of_several_references_of_one_prompt_does_not_repeat() -> None:
    """Ten annotators who agree are one use of a label."""
    assert find_labels([["yes"] * 10, ["no"] * 10, ["two"] * 10]) == ()
    assert find_labels([["yes", "yes"], ["no"], ["no", "yes"], ["yes"]]) == ("no", "yes")


def test_too_many_labels_have_no_macro_f1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_CELLS", 3 * 4 * 4 - 1)
    scores = compute_scores(["accuracy", "macro-F1"], list("abcd"), [[text] for text in "abcd"])
    assert scores[0].value == 1.0
    assert scores[1].value is None
    assert scores[1].note == "4 distinct references in 4 examples are too many for labels"
