"""Which weights are NF4: by config.json, and by the names in the files."""

from typing import Any

import pytest

from lorgnette.models.quantization import (
    QLORA,
    Quantization,
    find_unsupported_quantization,
    is_part,
    list_modules_left_out,
    list_quantized_modules,
    read_quantization,
    select_quantization,
)

NF4 = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "uint8", "bnb_4bit_compute_dtype": "bfloat16",
    "llm_int8_skip_modules": ["lm_head", "visual"],
}  # fmt: skip
LAYER = "model.language_model.layers.11"
NAMES = [
    f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.self_attn.q_proj.bias", f"{LAYER}.mlp.down_proj.weight",
    f"{LAYER}.input_layernorm.weight", f"{LAYER}.linear_attn.out_proj.weight", "lm_head.weight",
    f"{LAYER}.mlp.experts.gate_up_proj", "model.visual.blocks.0.mlp.down_proj.weight",
    "model.visual.blocks.0.attn.qkv.weight.quant_state.bitsandbytes__nf4", "model.visual.blocks.0.attn.qkv.weight",
]  # fmt: skip


@pytest.mark.parametrize("at", ["root", "text_config"])
def test_a_checkpoint_in_nf4_is_read(at: str) -> None:
    config = {"quantization_config": NF4} if at == "root" else {"text_config": {"quantization_config": NF4}}
    assert read_quantization(config) == select_quantization("nf4", config) == Quantization(is_stored=True)
    once = {"quantization_config": {k: v for k, v in NF4.items() if k != "bnb_4bit_use_double_quant"}}
    assert read_quantization(once) == Quantization(is_stored=True, has_double_quantization=False)


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": NF4}, {"text_config": {"quantization_config": NF4}},
        {"quantization_config": None, "text_config": {"quantization_config": NF4}},
    ],
)  # fmt: skip
def test_modules_left_out_are_those_of_the_section_that_is_read(config: dict[str, Any]) -> None:
    assert list_modules_left_out(config) == ["lm_head", "visual"]
    assert list_modules_left_out({}) == list_modules_left_out({"quantization_config": {"load_in_4bit": True}}) == []


def test_a_setting_quantizes_what_is_not() -> None:
    assert read_quantization({}) is None is select_quantization(None, {})
    assert select_quantization("nf4", {"quantization_config": None}) is QLORA


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quant_method": "gptq", "bits": 4}, "its weights are quantized (gptq)"),
        ({"load_in_4bit": False, "load_in_8bit": True}, "its weights are quantized (int8)"),
        ({"bnb_4bit_quant_type": "fp4"}, "its weights are quantized (fp4)"),
        ({"load_in_4bit": False}, "its weights are quantized (in an unknown way)"),
        ({"bnb_4bit_quant_storage": "bfloat16"}, "its 4-bit weights are stored as bfloat16"),
        ({"llm_int8_skip_modules": 5}, "llm_int8_skip_modules is 5, not a list of names"),
        ({"llm_int8_skip_modules": "lm_head"}, "llm_int8_skip_modules is 'lm_head', not a list of names"),
        ({"llm_int8_skip_modules": ["lm_head", 1]}, "llm_int8_skip_modules is ['lm_head', 1], not a list of names"),
    ],
)
def test_another_quantization_is_explained(change: dict[str, Any], reason: str) -> None:
    config = {"quantization_config": NF4 | change}
    assert find_unsupported_quantization(config) == reason
    assert read_quantization(config) is None
    assert find_unsupported_quantization({"quantization_config": [4]}) == "quantization_config is a list, not an object"


def test_modules_are_those_of_the_files_or_the_projections() -> None:
    assert list_quantized_modules(Quantization(is_stored=True), NAMES) == ["model.visual.blocks.0.attn.qkv"]
    assert list_quantized_modules(QLORA, NAMES) == [f"{LAYER}.self_attn.q_proj", f"{LAYER}.mlp.down_proj"]


def test_parts_stand_beside_a_weight() -> None:
    assert [is_part(f"a.weight{end}") for end in ("", ".absmax", ".nested_quant_map", ".scale")] == [
        False, True, True, False,
    ]  # fmt: skip
