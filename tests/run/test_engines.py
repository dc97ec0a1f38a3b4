"""A training's model on a CPU, by our engine when it is asked for: the same losses as the reference's."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from lorgnette.run.engines import tuned
from lorgnette.run.job import Job


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_auto_on_a_cpu_says_why_it_is_the_reference(job: Callable[..., Job], said: io.StringIO) -> None:
    tuned(job("device=cpu"), None)
    assert "engine     reference (on a CPU)" in said.getvalue()
