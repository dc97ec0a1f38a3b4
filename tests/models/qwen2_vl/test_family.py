"""The table names modules that exist, and no others."""

import re
from functools import cache

import pytest
import torch
import transformers
from torch import nn

from lorgnette.config import TARGET_MODULES, Part, TargetModule
from lorgnette.errors import LorgnetteError
from lorgnette.models.qwen2_vl.family import FAMILIES, Family, find_family

TWO = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 99}


@cache
def linears(name: str) -> frozenset[str]:
    """Names of the linear layers of a model of that class, as PEFT sees them: two layers, no weights."""
    config = getattr(transformers, name.replace("ForConditionalGeneration", "Config"))(
        text_config=TWO, vision_config={"depth": 2}
    )
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    return frozenset(name for name, module in model.named_modules() if isinstance(module, nn.Linear))


def touched(
    name: str, targets: tuple[TargetModule, ...], towers: tuple[Part, ...], family: str = "qwen2_vl"
) -> set[str]:
    pattern = FAMILIES[family].build_target_pattern(targets, towers)
    return {module for module in linears(name) if re.fullmatch(pattern, module)}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_each_tower_is_all_of_its_layers_and_nothing_else(family: Family) -> None:
    every = linears(family.class_name)
    rest = {"lm_head"} | {name for name in every if "patch_embed" in name}
    language = {name for name in every if ".language_model." in name}
    vision = {name for name in every if ".visual.blocks." in name}
    merger = {name for name in every if ".visual.merger." in name}
    assert language | vision | merger | rest == every
    assert len(language) == 2 * len(TARGET_MODULES)
    for towers, wanted in (
        (("language",), language),
        (("vision",), vision),
        (("merger",), merger),
        (("merger", "language"), merger | language),
        (("language", "vision", "merger"), language | vision | merger),
    ):
        assert touched(family.class_name, TARGET_MODULES, towers, family.model_type) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", [("q_proj",), ("gate_proj", "down_proj"), ("v_proj", "up_proj")])
def test_only_the_projections_named_are_adapted(targets: tuple[TargetModule, ...]) -> None:
    found = touched("Qwen2VLForConditionalGeneration", targets, ("language",))
    assert {name.rsplit(".", 1)[1] for name in found} == set(targets)
    assert len(found) == 2 * len(targets)


def test_a_vision_tower_with_gate_up_and_down_is_not_touched() -> None:
    """Qwen2.5-VL's vision MLP has the language model's names: names alone would adapt it too."""
    name = "Qwen2_5_VLForConditionalGeneration"
    assert any("visual" in module and module.endswith("gate_proj") for module in linears(name))
    found = touched(name, TARGET_MODULES, ("language",))
    assert len(found) == 2 * len(TARGET_MODULES)
    assert not any("visual" in module for module in found)


@pytest.mark.parametrize("model_type", ["qwen2", "llava", None])
def test_an_unsupported_model_is_refused_with_those_that_are(model_type: str | None) -> None:
    with pytest.raises(LorgnetteError) as caught:
        find_family(model_type, "x/config.json")
    assert caught.value.message == f"model_type {model_type!r} is not supported"
    assert caught.value.where == "x/config.json"
    assert "qwen2_vl" in str(caught.value.hint)
