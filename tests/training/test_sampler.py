"""A step's passes come of its number: the examples that the schedule names, and no others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.config import ProcessorSettings, TrainSettings
from lorgnette.processing.processor import Processor
from lorgnette.training.epoch_order import select_examples
from lorgnette.training.sampler import BatchSampler
from lorgnette.types import Encoded, Example

SETTINGS = TrainSettings(batch_size=4, epochs=3)


@pytest.fixture
def encoded(tiny: Path, example: Callable[..., Example]) -> list[Encoded]:
    """Ten captions of five pictures, two of each."""
    encoder = Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56)))
    return [
        encoder.encode(example(("user", i // 2, "COCO Yes:"), ("assistant", "red car " * (i + 1)))) for i in range(10)
    ]


def test_a_step_is_what_the_schedule_says(encoded: list[Encoded]) -> None:
    batches = BatchSampler.from_settings(encoded, SETTINGS, 7, group_by_image=False)
    assert (batches.batch_size, batches.steps_per_epoch, batches.total_steps) == (4, 3, 9)
    for number in range(batches.total_steps):
        taken = [example for batch in batches.pack_step(number, 10**6, "none") for example in batch.examples]
        assert taken == [encoded[i].example for i in select_examples(number, 10, 4, 7)]
    assert len(batches.pack_step(0, 1, "none")) == 4
    assert (
        BatchSampler.from_settings(
            encoded, SETTINGS.model_copy(update={"max_steps": 5}), 7, group_by_image=False
        ).total_steps
        == 5
    )


def test_captions_of_a_picture_stay_together_where_they_are_grouped(encoded: list[Encoded]) -> None:
    batches = BatchSampler.from_settings(encoded, SETTINGS, 7, group_by_image=True)
    for number in range(batches.total_steps):
        pictures = [grid for batch in batches.pack_step(number, 10**6, "tree") for grid in batch.grids]
        assert len(pictures) == len(set(pictures)) <= 2


def test_what_is_coming_is_what_the_first_steps_take(encoded: list[Encoded]) -> None:
    batches = BatchSampler.from_settings(encoded, SETTINGS, 7, group_by_image=False)
    few = batches.first_steps(1, 10**6, "none")
    assert [batch.examples for batch in few] == [batch.examples for batch in batches.pack_step(0, 10**6, "none")]
    assert len(batches.first_steps(9, 10**6, "none")) == 2
    assert len(batches.first_steps(10**6, 10**6, "none")) == batches.total_steps
