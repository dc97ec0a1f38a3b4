"""A step's passes come of its number: the examples that the schedule names, and no others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.config import Encode, Train
from lorgnette.processing.processor import Encoder
from lorgnette.training.epoch_order import members
from lorgnette.training.sampler import Batches
from lorgnette.types import Encoded, Example

SETTINGS = Train(batch_size=2, accumulation=2, epochs=3)


@pytest.fixture
def encoded(tiny: Path, example: Callable[..., Example]) -> list[Encoded]:
    """Ten captions of five pictures, two of each."""
    encoder = Encoder.of_folder(tiny, Encode(size=(56, 56)))
    return [
        encoder.encode(example(("user", i // 2, "COCO Yes:"), ("assistant", "red car " * (i + 1)))) for i in range(10)
    ]


def test_a_step_is_what_the_schedule_says(encoded: list[Encoded]) -> None:
    batches = Batches.of(encoded, SETTINGS, 7, grouped=False)
    assert (batches.per_step, batches.epoch_steps, batches.total) == (4, 3, 9)
    for number in range(batches.total):
        taken = [example for batch in batches.step(number, 10**6, "none") for example in batch.examples]
        assert taken == [encoded[i].example for i in members(number, 10, 4, 7)]
    assert len(batches.step(0, 1, "none")) == 4
    assert Batches.of(encoded, SETTINGS.model_copy(update={"max_steps": 5}), 7, grouped=False).total == 5


def test_captions_of_a_picture_stay_together_where_they_are_grouped(encoded: list[Encoded]) -> None:
    batches = Batches.of(encoded, SETTINGS, 7, grouped=True)
    for number in range(batches.total):
        pictures = [grid for batch in batches.step(number, 10**6, "tree") for grid in batch.grids]
        assert len(pictures) == len(set(pictures)) <= 2


def test_what_is_coming_is_what_the_first_steps_take(encoded: list[Encoded]) -> None:
    batches = Batches.of(encoded, SETTINGS, 7, grouped=False)
    few = batches.coming(1, 10**6, "none")
    assert [batch.examples for batch in few] == [batch.examples for batch in batches.step(0, 10**6, "none")]
    assert len(batches.coming(9, 10**6, "none")) == 2
    assert len(batches.coming(10**6, 10**6, "none")) == batches.total
