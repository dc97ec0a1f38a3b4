"""The curves' reading: falling, risen again, harmful, nothing held out."""

from lorgnette.report.curve_summary import summarize_best_step, summarize_loss

FALLING = [(1.0, 3.0), (10.0, 2.0), (20.0, 1.0), (30.0, 0.5)]


def said(evals: list[tuple[float, float]], norms: list[tuple[float, float]] | None = None) -> str:
    return " ".join(summarize_loss(FALLING, evals, norms or [], "runs/a/best"))


def test_still_falling() -> None:
    text = said([(0, 3.0), (10, 2.0), (20, 1.5), (30, 1.2)])
    assert "lowest after step 30: 1.2 (3 before tuning)" in text
    assert "more steps may improve it" in text
    assert "by heart" not in text


def test_risen_again_is_learning_by_heart() -> None:
    text = said([(0, 3.0), (10, 2.0), (20, 2.2), (30, 2.6)], [(10.0, 1.0), (20.0, 1.5), (30.0, 2.5)])
    assert "lowest after step 10: 2" in text
    assert "rose to 2.6 while the training loss went on falling, and the gradient norm rose" in text
    assert "runs/a/best" in text


def test_what_another_number_chose_is_not_said_of_the_loss() -> None:
    evals = [(0.0, 3.0), (10.0, 2.0), (20.0, 2.6)]
    assert "kept" in " ".join(summarize_loss(FALLING, evals, [], "best"))
    assert "kept" not in " ".join(summarize_loss(FALLING, evals, [], None))


def test_a_metric_says_which_step_it_chose() -> None:
    points = [(0.0, 0.9), (10.0, 0.4), (20.0, 0.2), (30.0, 0.3)]
    [higher], [lower] = (
        summarize_best_step("ROUGE-L of 9 held-out pictures", points, "a/best", higher_is_better=h)
        for h in (True, False)
    )
    assert "step 10 was best: 0.4 (0.9 before tuning); its adapter is kept in a/best" in higher
    assert "step 20 was best: 0.2" in lower
    assert "the last, as saved" in summarize_best_step("x", points[:2], "a/best", higher_is_better=True)[0]
    assert summarize_best_step("x", points[:1], "a/best", higher_is_better=True) == []


def test_a_wobble_is_no_rise() -> None:
    text = said([(0, 3.0), (10, 2.0), (20, 1.0), (30, 1.005)])
    assert "by heart" not in text
    assert "more steps" not in text


def test_harm_is_said() -> None:
    assert "did harm" in said([(0, 1.0), (10, 1.2), (20, 1.3)])


def test_nothing_held_out() -> None:
    assert "Nothing was held out" in said([])
    assert summarize_loss([], [], [], "best") == []
