"""The sentences about a run's curves: falling, overfitting, worse than the base model, nothing held out."""

import pytest

from lorgnette.config import TrainSettings
from lorgnette.report.curve_summary import WHEN_CONTINUED, explain_no_change, summarize_best_step, summarize_loss

FALLING = [(1.0, 3.0), (10.0, 2.0), (20.0, 1.0), (30.0, 0.5)]


def summarize(evals: list[tuple[float, float]], norms: list[tuple[float, float]] | None = None) -> str:
    return " ".join(summarize_loss(FALLING, evals, norms or [], "runs/a/best"))


def test_still_falling() -> None:
    text = summarize([(0, 3.0), (10, 2.0), (20, 1.5), (30, 1.2)])
    assert "lowest after step 30: 1.2 (3 before fine-tuning)" in text
    assert "more steps may improve it" in text
    assert "overfitting" not in text


def test_a_rising_eval_loss_is_overfitting() -> None:
    text = summarize([(0, 3.0), (10, 2.0), (20, 2.2), (30, 2.6)], [(10.0, 1.0), (20.0, 1.5), (30.0, 2.5)])
    assert "lowest after step 10: 2" in text
    assert "rose to 2.6 while the training loss kept falling and the gradient norm rose: overfitting" in text
    assert "saved in runs/a/best" in text


@pytest.mark.parametrize(("last", "is_overfit"), [(0.0361, False), (0.2, False), (0.25, True)])
def test_a_rise_that_is_small_beside_the_fall_is_no_overfitting(last: float, is_overfit: bool) -> None:
    assert ("overfitting" in summarize([(0, 2.0), (10, 0.0353), (20, last)])) is is_overfit


def test_a_continued_run_is_compared_with_the_adapter_before() -> None:
    for evals in ([(0.0, 8.54), (9.0, 1.0)], [(0.0, 1.0), (9.0, 1.2)], [(0.0, 1.0), (9.0, 1.0)]):
        [text, *_] = summarize_loss(FALLING, evals, [], None, when=WHEN_CONTINUED)
        assert f"{evals[0][1]:.3g} before this training" in text
    [text] = summarize_best_step("x", [(0, 0.5), (9, 0.7)], "best", higher_is_better=True, when=WHEN_CONTINUED)
    assert "(0.5 before this training)" in text


def test_the_best_folder_is_named_only_if_the_loss_selects_it() -> None:
    evals = [(0.0, 3.0), (10.0, 2.0), (20.0, 2.6)]
    assert "saved" in " ".join(summarize_loss(FALLING, evals, [], "best"))
    assert "saved" not in " ".join(summarize_loss(FALLING, evals, [], None))


def test_the_best_step_of_a_metric() -> None:
    points = [(0.0, 0.9), (10.0, 0.4), (20.0, 0.2), (30.0, 0.3)]
    [higher], [lower] = (
        summarize_best_step("ROUGE-L of 9 held-out images", scores, "a/best", higher_is_better=is_higher)
        for scores, is_higher in (([(0.0, 0.1), *points[1:]], True), (points, False))
    )
    assert "held-out images: 0.4 after step 10 (0.1 before fine-tuning); its adapter is saved in a/best" in higher
    assert "0.2 after step 20" in lower
    assert "the last step" in summarize_best_step("x", points[:2], "a/best", higher_is_better=False)[0]
    [none] = summarize_best_step("x", points, "a/best", higher_is_better=True)
    assert none == "No step improved x: 0.9 before fine-tuning, at best 0.4 after step 10."
    [same] = summarize_best_step("x", [(0, 0.5), (9, 0.5)], "a/best", higher_is_better=True)
    assert "No step improved x" in same
    assert summarize_best_step("x", points[:1], "a/best", higher_is_better=True) == []


def test_a_rise_of_less_than_a_hundredth_is_none() -> None:
    text = summarize([(0, 3.0), (10, 2.0), (20, 1.0), (30, 1.005)])
    assert "overfitting" not in text
    assert "more steps" not in text


def test_a_loss_that_only_rises_means_worse_than_the_base_model() -> None:
    text = summarize([(0, 1.0), (10, 1.2), (20, 1.3)])
    assert "rose, 1 before fine-tuning and 1.3 after step 20: fine-tuning made it worse on the held-out" in text


@pytest.mark.parametrize("last", [0.995, 1.0, 1.009])
def test_a_change_of_less_than_a_hundredth_is_no_harm_and_no_gain(last: float) -> None:
    text = " ".join(summarize_loss(FALLING, [(0, 1.0), (10, 1.001), (20, last)], [], "best", "only 2 steps"))
    assert text == (
        f"The eval loss hardly changed: {last:.4g}, 1 before fine-tuning. The likeliest reason: only 2 steps."
    )


def test_an_equal_loss_means_that_nothing_changed() -> None:
    assert summarize([(0, 1.5), (10, 1.5), (20, 1.5)]).startswith("The eval loss did not change: 1.5, 1.5 before")


def test_a_loss_that_rose_and_fell_back_is_no_harm() -> None:
    text = summarize([(0, 1.0), (10, 1.2), (20, 1.001)])
    assert "did not fall, 1 before fine-tuning and 1 after step 20." in text
    assert "worse" not in text


def test_without_the_base_model_s_loss_nothing_is_said_of_it() -> None:
    """The log was deleted before a resume."""
    text = summarize([(10, 1.0), (20, 1.2)])
    assert "lowest after step 10: 1. It then rose to 1.2" in text
    assert "before fine-tuning" not in text
    assert summarize([(10, 1.0)]) == "The eval loss was lowest after step 10: 1."
    [best] = summarize_best_step("x", [(10, 0.4), (20, 0.2)], "a/best", higher_is_better=True)
    assert best == "Best x: 0.4 after step 10; its adapter is saved in a/best."


def test_a_loss_that_is_no_number_is_left_out() -> None:
    assert "lowest after step 20: 1 (2 before" in summarize([(0, 2.0), (10, float("nan")), (20, 1.0)])


@pytest.mark.parametrize(
    ("settings", "num_steps", "reason"),
    [
        ({"warmup_steps": 100}, 4, "all 4 steps are in the warm-up (train.warmup_steps=100), where the learning rate "
         "reached 3e-06 of train.learning_rate=0.0001; lower train.warmup_steps"),
        ({"warmup_steps": 100}, 1, "the only step is in the warm-up"),
        ({"learning_rate": 1e-7}, 500, "train.learning_rate=1e-07 is low"),
        ({}, 1, "only 1 optimizer step; raise train.epochs"),
        ({}, 19, "only 19 optimizer steps"),
        ({"epochs": "auto", "max_steps": 3}, 3, "only 3 optimizer steps; raise train.max_steps"),
        ({}, 20, "the settings show none; try a higher learning rate"),
    ],
)  # fmt: skip
def test_the_reason_for_no_change(settings: dict[str, float], num_steps: int, reason: str) -> None:
    settings = {"epochs": 2, "learning_rate": 1e-4} | settings
    assert explain_no_change(TrainSettings(**settings), num_steps).startswith(reason)


def test_nothing_held_out() -> None:
    assert "No examples are held out" in summarize([])
    assert summarize_loss([], [], [], "best") == []
