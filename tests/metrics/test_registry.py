"""Every metric by its name, groups of metrics, and the selection of one."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorgnette import config
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.metrics.registry import (
    CAPTION_METRICS,
    JSON_METRICS,
    LATEX_METRICS,
    METRICS,
    check_best_model_metric,
    compare_answers,
    compute_scores,
    expand_metric_names,
    select_sample_metric,
    select_tracked_metric,
)
from lorgnette.types import Example, Turn

WORDS = st.lists(st.sampled_from(["cat", "dog", "on", "(1,2),(3,4)", "猫", r"\frac", "it's"]), max_size=6).map(" ".join)
SETS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=2)), min_size=2, max_size=4)
Set = list[tuple[str, list[str]]]


def score_examples(examples: Set) -> dict[str, tuple[float, ...]]:
    hypotheses, references = [own for own, _ in examples], [texts for _, texts in examples]
    scores = compute_scores(METRICS, hypotheses, references)
    return {score.name: score.per_example for score in scores}


@settings(deadline=None)
@given(SETS)
def test_values_are_bounded_and_follow_the_examples(examples: Set) -> None:
    scores = score_examples(examples)
    for name, values in scores.items():
        assert all(0 <= value <= (10 if name == "CIDEr-D" else 1) + 1e-9 for value in values)
    reverse = score_examples(examples[::-1])
    assert {name: pytest.approx(values[::-1], abs=1e-12) for name, values in scores.items()} == reverse


SHARES = ("accuracy", "exact-match", "json-exact-match", "json-valid", "latex-exact-match", "box-accuracy")


def test_identical_texts_are_best() -> None:
    texts = ["a cat sits on (1,2),(3,4)", "two dogs run over there", r"\frac { a } { b } + c"]
    best = {name: 0.0 if metric.better == "lower" else 1.0 for name, metric in METRICS.items()} | {"CIDEr-D": 10.0}
    objects = ['{"a": 1, "b": [true, null]}', '{"a": 2, "b": []}', "{}"]
    others = [name for name in METRICS if name not in JSON_METRICS]
    scores = compute_scores(others, texts, [[text] for text in texts])
    scores += compute_scores(JSON_METRICS, objects, [[text] for text in objects])
    assert len(scores) == len(METRICS)
    for score in scores:
        assert score.value == pytest.approx(best[score.name], abs=1e-7)
        # Resampling three equal values shows no uncertainty. A share has Wilson's interval, any other metric none.
        if score.name in SHARES:
            low, high = score.interval or (0, 0)
            assert (low, high) == (pytest.approx(1 / (1 + 1.959964**2 / 3)), 1.0), score.name
        else:
            assert score.interval is None, score.name


def test_scores_follow_the_order_of_names() -> None:
    names = ["ANLS", "CIDEr-D", "BLEU-4", "BLEU-1"]
    scores = compute_scores(names, ["a", "b"], [["a"], ["b", "c"]])
    assert [score.name for score in scores] == names
    assert all(len(score.per_example) == 2 for score in scores)


def test_an_interval_includes_its_value() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["cat", "dog", "on", "mat"], size=8)) for _ in range(60)]
    for score in compute_scores([*CAPTION_METRICS, *LATEX_METRICS], texts[:30], [[text] for text in texts[30:]]):
        assert score.value is not None
        assert score.interval is not None
        assert score.interval[0] <= score.value <= score.interval[1]


def test_one_image_has_no_cider_and_no_intervals() -> None:
    scores = {score.name: score for score in compute_scores(METRICS, ["a cat"], [["a cat", "a dog"]])}
    cider = scores["CIDEr-D"]
    assert (cider.value, cider.per_example, cider.interval) == (None, (), None)
    assert cider.note is not None
    assert "several images" in cider.note
    assert scores["exact-match"].value == 1
    assert scores["box-IoU"].note == "no reference has a box"
    assert all(score.interval is None for score in scores.values())


def test_without_examples_metrics_are_undefined() -> None:
    for score in compute_scores(METRICS, [], []):
        assert (score.value, score.per_example, score.interval) == (None, (), None)
        assert score.note is not None


def test_chinese_is_scored_by_character() -> None:
    scores = compute_scores(METRICS, ["一只猫。", "两只狗在跑"], [["一只猫"], ["三只狗在跑"]])
    values = {score.name: score.value for score in scores}
    assert values["BLEU-1"] == pytest.approx(7 / 8)
    assert values["token-F1"] == pytest.approx((1 + 0.8) / 2)


def test_latex_is_scored_by_token() -> None:
    scores = compute_scores(LATEX_METRICS, [r"\frac {a} b ", r"x ^ 2"], [[r"\frac{a}b"], [r"x^3"]])
    assert [score.value for score in scores[:2]] == pytest.approx([0.5, 1 / 6])


def test_unknown_metrics_and_missing_references_are_errors() -> None:
    with pytest.raises(UsageError, match="METEOR · one of BLEU-1, "):
        compute_scores(["METEOR"], ["a"], [["a"]])
    with pytest.raises(LorgnetteError, match="no reference · example 2"):
        compute_scores(["ANLS"], ["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="2 answers to 1 examples"):
        compute_scores(["ANLS"], ["a", "b"], [["a"]])


def test_a_better_system_is_significantly_better() -> None:
    references = [[f"a cat number {i} sits here"] for i in range(20)]
    wrong, right = ["a dog"] * 20, [texts[0] for texts in references]
    differences = compare_answers([*CAPTION_METRICS, "edit-distance"], wrong, right, references)
    assert [difference.name for difference in differences] == [*CAPTION_METRICS, "edit-distance"]
    for difference in differences:
        assert difference.value is not None
        assert difference.interval is not None
        assert difference.p_value is not None
        assert (difference.value > 0) == (difference.name != "edit-distance")
        assert difference.p_value < 0.01
        assert difference.interval[0] <= difference.value + 1e-9
        assert difference.value - 1e-9 <= difference.interval[1]


def test_a_thousand_images_take_seconds() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(500)])
    texts = [" ".join(rng.choice(words, size=10)) + "." for _ in range(6000)]
    start = time.perf_counter()
    compute_scores(CAPTION_METRICS, texts[:1000], [texts[1000 + 5 * i : 1005 + 5 * i] for i in range(1000)])
    assert time.perf_counter() - start < 10


def test_docs_name_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    names = {name for cell in table for name in re.findall(r"`([^`]+)`", cell)}
    assert names | {"BLEU-2", "BLEU-3"} == set(METRICS)


def test_names_are_groups_and_metrics() -> None:
    assert expand_metric_names(["latex", "ANLS", "latex-BLEU"]) == (
        "latex-exact-match", "latex-edit-distance", "latex-BLEU", "ANLS",
    )  # fmt: skip
    assert expand_metric_names(["none"]) == ()
    assert [select_sample_metric(names) for names in (["caption"], ["latex"], ["ANLS", "token-F1"], ["none"])] == [
        "ROUGE-L", "latex-edit-distance", "ANLS", None,
    ]  # fmt: skip
    groups = "auto, caption, label, json, box, latex, demo, none"
    with pytest.raises(UsageError, match=rf"predict\.metrics=SPICE · {groups}, or one of BLEU-1"):
        expand_metric_names(["SPICE"])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["predict.metrics=ANLS,token-F1"], "ANLS"),
        (["predict.metrics=ANLS", "train.metric_for_best_model=token-F1"], "token-F1"),
        (["predict.metrics=none"], None),
    ],
)
def test_the_tracked_metric_is_the_one_for_the_best_model(overrides: list[str], name: str | None) -> None:
    assert select_tracked_metric(config.load_settings(None, overrides)) == name


@pytest.mark.parametrize(
    ("name", "answers", "is_defined"),
    [
        ("CIDEr-D", ["a dog", "two cars"], True),
        ("CIDEr-D", ["a dog"], False),
        ("ROUGE-L", ["a dog"], True),
        ("ROUGE-L", [], False),
        ("box-IoU", ["a dog", "two cars"], False),
        ("box-IoU", ["a dog", "(1,2),(3,4)"], True),
        ("accuracy", ["cat", "dog"], True),
        ("macro-F1", ["cat", "dog"], True),
        ("macro-F1", [], False),
        ("json-field-accuracy", ["a dog"], False),
        ("json-field-accuracy", ['{"a": 1}'], True),
        ("loss", [], True),
    ],
)
def test_an_undefined_metric_cannot_select_the_best_model(name: str, answers: list[str], is_defined: bool) -> None:
    run_settings = config.load_settings(None, [f"train.metric_for_best_model={name}"])
    held_out = [
        Example(str(i), (Turn("user", ("p", str(i))), Turn("assistant", (text,))), Path("d.json"), i)
        for i, text in enumerate(answers)
    ]
    if is_defined:
        check_best_model_metric(run_settings, held_out)
    else:
        with pytest.raises(
            UsageError,
            match=f"undefined for the held-out examples · train.metric_for_best_model={name} · hold out more",
        ):
            check_best_model_metric(run_settings, held_out)
