"""The words about rounds and the score."""

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.teaching import notices
from lorgnette.teaching.events import RoundDone, RoundFailed
from lorgnette.teaching.score import Plateau, Share


def test_rounds_that_end_well() -> None:
    done = RoundDone(t=0, round=3, answers=24, steps=30, loss=0.123, seconds=1.64, end_reason="low")
    assert notices.describe_round(done).to_view() == {
        "kind": "tuned", "text": "Tuned on 24 answers in 1.6 s.", "details": "30 steps, loss 0.12", "images": [],
        "action": "",
    }  # fmt: skip
    assert notices.describe_needless_round(8).text == "The last 8 were all right: not tuned."
    assert notices.describe_needless_round(1).text == "The last answer was right: not tuned."
    assert notices.describe_known_answers().kind == "not_tuned"


@pytest.mark.parametrize(
    ("good_round", "end"), [(3, "The model of round 3 goes on."), (0, "The untuned model goes on.")]
)
def test_a_round_that_fails(good_round: int, end: str) -> None:
    failed = RoundFailed(t=0, round=4, message="the loss is not finite", hint="try again", kind="loss")
    notice = notices.describe_failed_round(failed, good_round, [3, 9])
    assert notice.text == f"Round 4 did not finish: the loss is not finite. {end}"
    assert (notice.kind, notice.details, notice.images, notice.action) == ("failed", "try again", (3, 9), "train")


def test_a_lack_of_memory() -> None:
    message, hint = "not enough memory for a round: 7.9 GiB wanted, 6.1 free", "use a smaller image_size"
    failed = RoundFailed(t=0, round=4, message=message, hint=hint, kind="memory")
    text = "Not enough memory for a round: 7.9 GiB wanted, 6.1 free. Use a smaller image_size. Your answers are safe."
    assert notices.describe_failed_round(failed, 3) == notices.Notice("memory", text, action="train")


def test_errors() -> None:
    error = LorgnetteError("weights are cut off", where="model/", hint="get them again")
    lost = notices.describe_lost_model(error)
    assert lost.text.startswith("The model has stopped: weights are cut off. You can go on writing")
    assert (lost.details, lost.action) == ("model/ · get them again", "")
    full = notices.describe_write_error(error)
    assert (full.text, full.action) == ("Weights are cut off. Get them again.", "")
    for is_memory, kind in ((True, "memory"), (False, "failed")):
        missing = notices.describe_missing_suggestion("a/b.png", error, is_memory=is_memory)
        assert (missing.kind, missing.text, missing.action) == (
            kind, "No suggestion for a/b.png: weights are cut off.", ""
        )  # fmt: skip


@pytest.mark.parametrize(
    ("taken", "left", "text"),
    [
        (16, 212, "Right 16 times in a row. Finish and let it caption the other 212?"),
        (15, 1, "Right 15 of the last 16 times. Finish and let it caption the last one?"),
        (16, 0, "Right 16 times in a row."),
    ],
)
def test_it_is_enough(taken: int, left: int, text: str) -> None:
    assert notices.describe_enough(Share(taken, 16, 0.8, 1.0), left) == notices.Notice("enough", text, action="finish")


def test_it_is_flat_or_not_learned() -> None:
    flat = notices.describe_plateau(Plateau(11, 12, 0.2, 0.2), [3, 9])
    assert flat.text == "More answers no longer help: 11 of 16, before 12. What it still gets wrong:"
    assert (flat.images, flat.action) == ((3, 9), "finish")
    assert notices.describe_plateau(Plateau(11, 12, 0.2, 0.2), []).text.endswith("before 12.")
    assert "does not learn this yet" in notices.describe_no_learning().text
    done = RoundDone(t=0, round=3, answers=24, steps=70, loss=3.18, seconds=12.3, end_reason="limit")
    assert notices.describe_no_learning(done).text.startswith(
        "Tuned on 24 answers in 12.3 s. It does not learn this yet"
    )
