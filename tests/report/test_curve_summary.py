"""The sentences about a run's curves: falling, overfitting, worse than the base model, nothing held out."""

from lorgnette.report.curve_summary import summarize_best_step, summarize_loss

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


def test_the_best_folder_is_named_only_if_the_loss_selects_it() -> None:
    evals = [(0.0, 3.0), (10.0, 2.0), (20.0, 2.6)]
    assert "saved" in " ".join(summarize_loss(FALLING, evals, [], "best"))
    assert "saved" not in " ".join(summarize_loss(FALLING, evals, [], None))


def test_the_best_step_of_a_metric() -> None:
    points = [(0.0, 0.9), (10.0, 0.4), (20.0, 0.2), (30.0, 0.3)]
    [higher], [lower] = (
        summarize_best_step("ROUGE-L of 9 held-out images", points, "a/best", higher_is_better=is_higher)
        for is_higher in (True, False)
    )
    assert "held-out images: 0.4 after step 10 (0.9 before fine-tuning); its adapter is saved in a/best" in higher
    assert "0.2 after step 20" in lower
    assert "the last step" in summarize_best_step("x", points[:2], "a/best", higher_is_better=True)[0]
    assert summarize_best_step("x", points[:1], "a/best", higher_is_better=True) == []


def test_a_rise_of_less_than_a_hundredth_is_none() -> None:
    text = summarize([(0, 3.0), (10, 2.0), (20, 1.0), (30, 1.005)])
    assert "overfitting" not in text
    assert "more steps" not in text


def test_a_loss_that_only_rises_means_worse_than_the_base_model() -> None:
    assert "fine-tuning made it worse" in summarize([(0, 1.0), (10, 1.2), (20, 1.3)])


def test_nothing_held_out() -> None:
    assert "No examples are held out" in summarize([])
    assert summarize_loss([], [], [], "best") == []
