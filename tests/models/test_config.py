"""Sizes of every family's config.json; the hub's own files where they are at hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import (
    FAMILIES,
    estimate_num_values,
    find_absurd_value,
    find_unsupported_feature,
    parse_configs,
)

FAST = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_config_is_read(model_type: str, tiny_family: Callable[[str], Path]) -> None:
    hf_config = BaseCheckpoint.from_folder(tiny_family(model_type)).load_hf_config()
    assert find_absurd_value(hf_config) is None
    assert (find_unsupported_feature(hf_config) is None) == (model_type in FAST)
    if model_type in FAST:
        text, vision = parse_configs(hf_config)
        assert (text.model_type, vision.model_type) == (model_type, model_type)
        assert vision.feature_width == 64 * (1 + len(vision.deepstack_blocks))
        assert text.num_deepstack_levels == len(vision.deepstack_blocks)


@pytest.mark.parametrize(
    ("name", "head_dim", "is_tied", "blocks", "num_values"),
    [
        ("Qwen2.5-VL-3B", 128, True, (7, 15, 23, 31), 3.75e9),
        ("Qwen3-VL-2B", 128, True, (5, 11, 17), 2.13e9),
        ("Qwen3-VL-4B", 128, True, (5, 11, 17), 4.44e9),
    ],
)
def test_the_hubs_configs(
    shared: Callable[[str], Path], name: str, head_dim: int, is_tied: bool, blocks: tuple[int, ...], num_values: float
) -> None:
    path = shared("qwen2-vl") / "configs" / f"{name}-Instruct.config.json"
    hf_config = json.loads(path.read_text())
    text, vision = parse_configs(hf_config)
    assert (text.head_dim, text.tie_word_embeddings) == (head_dim, is_tied)
    assert blocks in (vision.full_attention_blocks, vision.deepstack_blocks)
    assert estimate_num_values(hf_config) == pytest.approx(num_values, rel=0.35)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": False}}, "M-RoPE"),
    ],
)
def test_what_qwen3s_decoder_does_not_compute_is_named(
    tiny_family: Callable[[str], Path], change: dict[str, object], reason: str
) -> None:
    """transformers gives o_proj a bias, too, and does not read whether M-RoPE is interleaved."""
    hf_config = BaseCheckpoint.from_folder(tiny_family("qwen3_vl")).load_hf_config()
    assert reason in str(find_unsupported_feature({**hf_config, "text_config": hf_config["text_config"] | change}))


@pytest.mark.parametrize("name", ["deepstack_visual_indexes", "fullatt_block_indexes"])
@pytest.mark.parametrize("value", [[-1], [10**9], ["1"], {"a": 1}])
def test_an_absurd_list_of_blocks_is_named(name: str, value: object) -> None:
    assert str(find_absurd_value({"vision_config": {name: value}})).startswith(f"{name} is ")
    assert find_absurd_value({"vision_config": {name: [0, 5]}}) is None
