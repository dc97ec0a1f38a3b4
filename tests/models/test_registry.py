"""A family is found by its model_type; its configs are parsed by its own module."""

from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.models import registry
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import FAMILIES, find_family, find_unsupported_feature, parse_configs


@pytest.mark.parametrize("model_type", ["qwen2", "llava", None])
def test_an_unsupported_model_type_is_refused(model_type: str | None) -> None:
    with pytest.raises(LorgnetteError) as caught:
        find_family(model_type, "x/config.json")
    assert caught.value.message.removesuffix(": it reads no images") == f"model_type {model_type!r} is not supported"
    assert caught.value.where == "x/config.json"
    assert "lorgnette model list" in str(caught.value.hint)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_same_files(name: str) -> None:
    folder = Path(registry.__file__).parent / name
    files = {"facts.py", "config.py", "weights.py", "positions.py", "text_decoder.py", "vision_tower.py"}
    assert {path.name for path in folder.glob("*.py")} == files | {"__init__.py"}


def test_configs_are_parsed_by_the_familys_module(tiny: Path) -> None:
    hf_config = BaseCheckpoint.from_folder(tiny).load_hf_config()
    text, vision = parse_configs(hf_config)
    assert (text.num_layers, vision.depth) == (2, 2)
    assert find_unsupported_feature(hf_config) is None
    assert find_unsupported_feature({**hf_config, "hidden_act": "gelu"}) == "hidden_act 'gelu'"
