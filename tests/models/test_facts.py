"""Every family's facts: the class exists, and no two families share a name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from lorgnette.models.registry import FAMILIES


def test_the_classes_are_transformers() -> None:
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type
        config = getattr(transformers, family.class_name).config_class
        assert config.model_type == model_type


def test_no_hub_name_belongs_to_two_families() -> None:
    names = [name for family in FAMILIES.values() for name in family.hub_names]
    assert len(names) == len(set(names)) > 20
    assert all(name.count("/") == 1 for name in names)


def _keep(published: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """Of a published config, the keys that a size states, with the root's and the text's tie as one."""
    kept = {key: published[key] if key in published else published["text_config"][key] for key in stated}
    for section in ("text_config", "vision_config"):
        if section in stated:
            kept[section] = {key: published[section][key] for key in stated[section]}
    return kept


@pytest.mark.parametrize(
    "name",
    [f"{size}-Instruct" for size in ("Qwen2-VL-2B", "Qwen2-VL-7B", "Qwen2.5-VL-3B", "Qwen3-VL-2B", "Qwen3-VL-4B")],
)
def test_sizes_are_those_of_the_published_configs(name: str, shared: Callable[[str], Path]) -> None:
    published = json.loads((shared("qwen2-vl") / "configs" / f"{name}.config.json").read_text())
    sizes = [size for family in FAMILIES.values() for size in family.sizes]
    [size] = [size for size in sizes if f"Qwen/{name}" in size.names]
    assert _keep(published, dict(size.config)) == size.config
