"""A training's model on a CPU, by our engine when it is asked for: the same losses as the reference's."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from lorgnette.report import log
from lorgnette.run import tuning
from lorgnette.run.engines import tuned
from lorgnette.run.job import Job


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_model_is_made_ready(job: Callable[..., Job], said: io.StringIO, engine: str) -> None:
    made = job("device=cpu", f"engine={engine}")
    ready = tuned(made, None)
    assert f"engine     {engine}" in said.getvalue()
    assert len(ready.state()) == 2 * 7 * 2
    assert all(not tensor.any() for name, tensor in ready.state().items() if "lora_B" in name)
    assert ready.pass_tokens >= max(len(e.tokens) for e in ready.material.examples)
    assert ready.features.of(ready.material.grids[:1]).shape[1] == 64


def test_auto_on_a_cpu_says_why_it_is_the_reference(job: Callable[..., Job], said: io.StringIO) -> None:
    tuned(job("device=cpu"), None)
    assert "engine     reference (on a CPU)" in said.getvalue()


def test_a_training_is_the_same_by_either_engine(job: Callable[..., Job], tmp_path: Any) -> None:
    found = []
    for engine in ("fast", "reference"):
        made = job("device=cpu", f"engine={engine}", "lora.dropout=0", "train.lr=1e-2", f"run={tmp_path / engine}")
        tuning.tune(made)
        found.append([r["loss"] for r in log.read(made.folder.log) if r["kind"] == "step"])
    assert len(found[0]) == 2
    assert found[0] == pytest.approx(found[1], rel=1e-4)
