"""Which engine a training takes, and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorgnette import config
from lorgnette.config import Settings
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.errors import UsageError


@pytest.fixture
def known(tiny: Path) -> dict[str, Any]:
    return json.loads((tiny / "config.json").read_text())


def settings(*words: str) -> Settings:
    return config.load_settings(None, ["model=m", "data=d", *words])


def test_auto_is_fast_on_a_gpu_and_the_reference_elsewhere(known: dict[str, Any]) -> None:
    assert select_engine(settings(), known, on_gpu=True) == ("fast", None)
    assert select_engine(settings(), known, on_gpu=False) == ("reference", "on a CPU")


def test_what_is_asked_for_is_taken(known: dict[str, Any]) -> None:
    assert select_engine(settings("engine=reference"), known, on_gpu=True) == ("reference", "as asked for")
    assert select_engine(settings("engine=fast"), known, on_gpu=False) == ("fast", None)


def test_a_trained_tower_is_the_references(known: dict[str, Any]) -> None:
    engine, why = select_engine(settings("lora.parts=vision"), known, on_gpu=True)
    assert engine == "reference"
    assert why is not None
    assert "vision tower" in why
    with pytest.raises(UsageError, match="vision tower"):
        select_engine(settings("engine=fast", "lora.parts=vision"), known, on_gpu=True)


def test_a_model_that_is_not_ours_to_compute_is_the_references(known: dict[str, Any]) -> None:
    engine, why = select_engine(settings(), known | {"hidden_act": "gelu"}, on_gpu=True)
    assert engine == "reference"
    assert why


def test_dropout_keeps_examples_apart_unless_they_are_grouped() -> None:
    assert select_prefix_sharing(settings("lora.dropout=0"), "fast") == "tree"
    assert select_prefix_sharing(settings("lora.dropout=0.1"), "fast") == "none"
    assert select_prefix_sharing(settings("lora.dropout=0.1", "data.group_by_image=true"), "fast") == "tree"
    assert select_prefix_sharing(settings("lora.dropout=0"), "reference") == "none"
