"""The demo's facts: counted from references and answers, in the scores before and after training."""

import random
from pathlib import Path

from lorgnette.demo.captions import write_caption
from lorgnette.demo.facts_metric import MAX_CAPTION_WORDS, register_facts_metric, score_facts
from lorgnette.demo.scenes import sample_scene
from lorgnette.metrics.report import score_before_after
from lorgnette.types import PredictionRow

CAPTION = "A small red car to the left of a big green tree."
OTHER_ROWS = [
    PredictionRow("c.png", (Path("c.png"),), "p", ("a dog runs on the grass",), "an animal", "a dog"),
    PredictionRow("d.png", (Path("d.png"),), "p", ("two red cars on a street",), "vehicles", "two cars"),
]


def build_row(base: str, tuned: str) -> PredictionRow:
    return PredictionRow("a.png", (Path("a.png"),), "COCO Yes:", (CAPTION,), base, tuned)


def test_facts_are_read_from_the_references() -> None:
    rows = [
        build_row("The image shows a big green tree. A small red car is left of the tree.", CAPTION),
        build_row("nothing", "A small red car to the right of a big green tree."),
    ]
    scores = {score.name: score for score in score_facts(rows)}
    assert (scores["both objects right"].before, scores["both objects right"].after) == ("1 of 2", "2 of 2")
    assert (scores["relation right"].after, scores["all three right"].after) == ("1 of 2", "1 of 2")
    assert scores["exact match"].after == "1 of 2"
    assert scores["words per answer"].change == "unsure"
    assert scores["exact match"].change == "unsure"  # one of two may be chance
    many = {score.name: score for score in score_facts(rows * 8)}
    assert (many["exact match"].change, many["exact match"].after) == ("better", "8 of 16")
    assert many["exact match"].difference.startswith("+8 (+")
    unchanged = many["both objects right"]
    assert (unchanged.before, unchanged.after, unchanged.change) == ("8 of 16", "16 of 16", "better")
    [short] = (score for score in score_facts([build_row("", CAPTION)]) if score.name == "short caption")
    assert (short.before, short.after) == ("0 of 1", "1 of 1")  # no answer is no caption


def test_every_caption_of_the_demo_is_short() -> None:
    rng = random.Random(0)
    lengths = {len(write_caption(sample_scene(rng)).split()) for _ in range(500)}
    assert max(lengths) <= MAX_CAPTION_WORDS < 2 * max(lengths)


def test_predict_metrics_demo_stands_for_the_facts() -> None:
    register_facts_metric()
    rows = [build_row("nothing", CAPTION)]
    assert score_before_after(rows, ("demo",)) == score_facts(rows)
    names = [score.name for score in score_before_after(rows, ("demo", "ANLS"))]
    assert names == [*(score.name for score in score_facts(rows)), "ANLS"]


def test_other_data_has_no_facts() -> None:
    """`lorgnette demo data=mine.csv`: these references describe no drawn scene."""
    register_facts_metric()
    assert score_before_after(OTHER_ROWS, ("demo",)) == []
    assert [score.name for score in score_before_after(OTHER_ROWS, ("demo", "ANLS"))] == ["ANLS"]
