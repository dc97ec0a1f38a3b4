"""A run's parts."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest

from lorgnette.training.job import Job


def test_a_stage_hands_on_another_job_and_changes_none(job: Callable[..., Job]) -> None:
    with pytest.raises(FrozenInstanceError):
        job().material = None  # type: ignore[misc, assignment]
