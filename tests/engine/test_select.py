"""Which engine a training takes, and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorgnette import config
from lorgnette.config import Settings
from lorgnette.engine.select import engine_for, share_of
from lorgnette.errors import UsageError


@pytest.fixture
def known(tiny: Path) -> dict[str, Any]:
    return json.loads((tiny / "config.json").read_text())


def settings(*words: str) -> Settings:
    return config.load(None, ["model=m", "data=d", *words])


def test_auto_is_fast_on_a_gpu_and_the_reference_elsewhere(known: dict[str, Any]) -> None:
    assert engine_for(settings(), known, on_gpu=True) == ("fast", None)
    assert engine_for(settings(), known, on_gpu=False) == ("reference", "on a CPU")


def test_what_is_asked_for_is_taken(known: dict[str, Any]) -> None:
    assert engine_for(settings("engine=reference"), known, on_gpu=True) == ("reference", "as asked for")
    assert engine_for(settings("engine=fast"), known, on_gpu=False) == ("fast", None)


def test_a_trained_tower_is_the_references(known: dict[str, Any]) -> None:
    engine, why = engine_for(settings("lora.towers=vision"), known, on_gpu=True)
    assert engine == "reference"
    assert why is not None
    assert "vision tower" in why
    with pytest.raises(UsageError, match="vision tower"):
        engine_for(settings("engine=fast", "lora.towers=vision"), known, on_gpu=True)


def test_a_model_that_is_not_ours_to_compute_is_the_references(known: dict[str, Any]) -> None:
    engine, why = engine_for(settings(), known | {"hidden_act": "gelu"}, on_gpu=True)
    assert engine == "reference"
    assert why


def test_dropout_keeps_examples_apart_unless_they_are_grouped() -> None:
    assert share_of(settings("lora.dropout=0"), "fast") == "tree"
    assert share_of(settings("lora.dropout=0.1"), "fast") == "none"
    assert share_of(settings("lora.dropout=0.1", "data.group_captions=image"), "fast") == "tree"
    assert share_of(settings("lora.dropout=0"), "reference") == "none"
