"""Damaged answers with boxes: each is read in bounded time and memory, and every number is finite."""

import math
import random

import pytest
from hostile import RUNS_ALL, damage_bytes, limits

from lorgnette.metrics.registry import BOX_METRICS, compute_scores
from lorgnette.processing.boxes import BoxConvention, ImageSize, parse_boxes

NUM_CASES = 300 if RUNS_ALL else 6
ANSWERS = (
    "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(12,34),(56,78)<|box_end|> and a dog",
    '```json\n[\n\t{"bbox_2d": [12, 34, 56, 78], "label": "a \\"cat"}, {"point_2d": [5, 6.5], "label": null}\n]\n```',
    "(12,34),(56,78) or [12.5, 34, 56, 78] or [-1, 2, 99999999, 1]",
)
NUMBERS = ("1e999", "-Infinity", "NaN", "9" * 500, "١", "²", "1e-400", "0x10", "1_000", "-0", "true", "null", "[[1]]")
SIZE = ImageSize(640, 480, 644, 476)


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_a_damaged_answer(seed: int) -> None:
    rng = random.Random(seed)
    answer = rng.choice(ANSWERS).replace(rng.choice(["12", "34", "56", "78"]), rng.choice(NUMBERS))
    if rng.random() < 0.7:
        answer = damage_bytes(rng, answer.encode()).decode(errors="replace")
    answer *= rng.choice([1, 1, 300])
    with limits():
        for convention in (BoxConvention("thousandths", "tokens"), BoxConvention("resized pixels", "json")):
            boxes = [found.box for found in parse_boxes(answer, convention, SIZE)]
            assert all(map(math.isfinite, (corner for box in boxes for corner in box.corners)))
            for x1, y1, x2, y2 in (box.corners for box in boxes if len(box.corners) == 4):
                assert (x1, y1) <= (max(x1, x2), max(y1, y2)) == (x2, y2)
            "".join(box.label for box in boxes).encode()
        scores = compute_scores(BOX_METRICS, [answer, ANSWERS[0]], [[ANSWERS[0]], [answer]])
    assert all(score.value is None or 0 <= score.value <= 1 for score in scores)


def test_the_answers_have_boxes() -> None:
    """A control."""
    counts = [len(parse_boxes(answer, BoxConvention("thousandths", "tokens"), SIZE)) for answer in ANSWERS]
    assert counts == [1, 2, 3]
