"""Target patterns match modules that exist, and no others."""

import re
from functools import cache

import pytest
import torch
import transformers
from torch import nn

from lorgnette.config import TARGET_MODULES, Part, TargetModule
from lorgnette.errors import UsageError
from lorgnette.models.family import Family
from lorgnette.models.registry import FAMILIES

SIZES = {
    "num_hidden_layers": 4,  # Qwen3.5 has full attention in every fourth
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": 99,
}


@cache
def list_linears(name: str) -> frozenset[str]:
    """Names of the linear layers of a small model of this class, as PEFT sees them. Allocates no weights."""
    config = getattr(transformers, name.replace("ForConditionalGeneration", "Config"))(
        text_config=SIZES, vision_config={"depth": 2}
    )
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    return frozenset(name for name, module in model.named_modules() if isinstance(module, nn.Linear))


def match_modules(
    name: str, target_modules: tuple[TargetModule, ...], parts: tuple[Part, ...], family: str = "qwen2_vl"
) -> set[str]:
    pattern = FAMILIES[family].build_target_pattern(target_modules, parts)
    return {module for module in list_linears(name) if re.fullmatch(pattern, module)}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_each_part_matches_all_its_linear_layers_and_no_others(family: Family) -> None:
    linears = list_linears(family.class_name)
    unadapted = {"lm_head"} | {name for name in linears if "patch_embed" in name or name.endswith("shared_expert_gate")}
    language = {name for name in linears if ".language_model." in name} - unadapted
    vision = {name for name in linears if ".visual.blocks." in name}
    merger = {name for name in linears if ".visual.merger." in name or ".deepstack_merger_list." in name}
    assert language | vision | merger | unadapted == linears
    assert all((language, vision, merger))
    for parts, expected in (
        (("language",), language),
        (("vision",), vision),
        (("merger",), merger),
        (("merger", "language"), merger | language),
        (("language", "vision", "merger"), language | vision | merger),
    ):
        assert match_modules(family.class_name, TARGET_MODULES, parts, family.model_type) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("target_modules", [("q_proj",), ("gate_proj", "down_proj"), ("v_proj", "up_proj")])
def test_only_the_target_modules_are_matched(target_modules: tuple[TargetModule, ...]) -> None:
    matches = match_modules("Qwen2VLForConditionalGeneration", target_modules, ("language",))
    assert {name.rsplit(".", 1)[1] for name in matches} == set(target_modules)
    assert len(matches) == 4 * len(target_modules)


def test_a_vision_mlp_with_gate_up_and_down_is_not_matched() -> None:
    """Qwen2.5-VL's vision MLP has the decoder's names: short names alone would match it too."""
    name = "Qwen2_5_VLForConditionalGeneration"
    assert any("visual" in module and module.endswith("gate_proj") for module in list_linears(name))
    matches = match_modules(name, TARGET_MODULES, ("language",))
    assert len(matches) == 4 * len(TARGET_MODULES)
    assert not any("visual" in module for module in matches)


EXPERTS = "the adapter leaves out the experts: it would take gigabytes with them"
LINEAR = "the adapter leaves out {}: it has them only with all seven lora.target_modules"


@pytest.mark.parametrize(
    ("family", "target_modules", "parts", "remarks"),
    [
        ("qwen2_vl", TARGET_MODULES, ("language",), []),
        ("qwen3_vl", ("q_proj",), ("language",), []),
        ("qwen3_vl_moe", TARGET_MODULES, ("language",), [EXPERTS]),
        ("qwen3_vl_moe", TARGET_MODULES, ("vision",), []),
        ("qwen3_5", TARGET_MODULES, ("language",), []),
        ("qwen3_5", ("q_proj", "up_proj"), ("language",), [LINEAR.format("linear_attn")]),
        ("qwen3_5_moe", ("q_proj",), ("language",), [EXPERTS, LINEAR.format("linear_attn, mlp.shared_expert")]),
    ],
)
def test_what_an_adapter_leaves_out_is_said(
    family: str, target_modules: tuple[TargetModule, ...], parts: tuple[Part, ...], remarks: list[str]
) -> None:
    """And it is left out: the pattern matches no module of them."""
    assert FAMILIES[family].list_target_remarks(target_modules, parts) == remarks
    matches = match_modules(FAMILIES[family].class_name, target_modules, parts, family)
    left_out = [remark.partition(": ")[0].rpartition(" out ")[2] for remark in remarks]
    names = [name for part in left_out for name in part.removeprefix("the ").split(", ")]
    assert matches
    assert not [module for module in matches if any(f".{name}." in module for name in names)]


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_targets_that_only_experts_have_are_refused(family: str) -> None:
    with pytest.raises(
        UsageError, match=r"nothing to adapt: in Qwen3\S* only experts have gate_proj, up_proj"
    ) as caught:
        FAMILIES[family].list_target_remarks(("gate_proj", "up_proj"), ("language",))
    assert caught.value.hint == "use q_proj,k_proj,v_proj,o_proj, or all seven"
    assert not match_modules(FAMILIES[family].class_name, ("gate_proj", "up_proj"), ("language",), family)
