"""Sizes that only some families have: experts, linear attention, gated full attention."""

from collections.abc import Mapping
from typing import Any

from lorgnette.models.model_config import Experts
from lorgnette.models.registry import FAMILIES, has_known_sizes, parse_sizes

CONFIGS: dict[str, Mapping[str, Any]] = {
    name: size.config for family in FAMILIES.values() for size in family.sizes for name in size.names
}


def test_experts_and_linear_attention_are_read() -> None:
    text, _ = parse_sizes(CONFIGS["Qwen/Qwen3.5-35B-A3B"])
    assert text.experts == Experts(256, 8, 512, 512)
    linear = text.linear_attention
    assert linear is not None
    assert linear.layers == tuple(i for i in range(40) if i % 4 != 3)
    assert (linear.key_width, linear.value_width) == (2048, 4096)
    assert text.linear_shapes["q_proj"] == (2 * 16 * 256, 2048)  # the gate too
    dense, _ = parse_sizes(CONFIGS["Qwen/Qwen3-VL-4B-Instruct"])
    assert dense.experts is dense.linear_attention is None
    assert dense.linear_shapes["q_proj"] == (32 * 128, 2560)


def test_kinds_of_layers_are_those_that_the_config_lists() -> None:
    config = CONFIGS["Qwen/Qwen3.5-4B"]
    kinds = ["full_attention", "linear_attention"] * 16
    text, _ = parse_sizes({**config, "text_config": {**config["text_config"], "layer_types": kinds}})
    assert text.linear_attention is not None
    assert text.linear_attention.layers == tuple(range(1, 32, 2))


def test_sizes_are_known_if_none_is_missing() -> None:
    config = CONFIGS["Qwen/Qwen3-VL-30B-A3B-Instruct"]
    assert has_known_sizes(config)
    text = {name: value for name, value in config["text_config"].items() if name != "moe_intermediate_size"}
    assert not has_known_sizes({**config, "text_config": text})
