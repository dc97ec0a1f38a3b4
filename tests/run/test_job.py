"""A run's parts, and the scoring that scores nothing."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest

from lorgnette.run.job import Job, unscored


def test_without_a_scoring_there_are_no_scores(job: Callable[..., Job]) -> None:
    assert job().score([]) == ()
    assert unscored([]) == ()


def test_a_stage_hands_on_another_job_and_changes_none(job: Callable[..., Job]) -> None:
    with pytest.raises(FrozenInstanceError):
        job().material = None  # type: ignore[misc, assignment]
