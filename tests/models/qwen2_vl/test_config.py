"""Sizes are read from both layouts of config.json; unsupported features are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import (
    find_unsupported_feature,
    parse_text_config,
    parse_vision_config,
)
from lorgnette.models.registry import estimate_num_values, find_absurd_value, parse_configs


@pytest.fixture
def config(tiny: Path) -> dict[str, Any]:
    return json.loads((tiny / "config.json").read_text())


def test_both_layouts_give_the_same_sizes(tiny: Path, config: dict[str, Any]) -> None:
    nested = Qwen2VLConfig.from_pretrained(tiny).to_dict()
    assert "hidden_size" not in nested
    assert find_unsupported_feature(config) is find_unsupported_feature(nested) is None
    assert parse_text_config(config) == parse_text_config(nested)
    assert parse_vision_config(config) == parse_vision_config(nested)


@pytest.mark.parametrize(("size", "tied"), [("2B", True), ("7B", False)])
def test_the_hubs_configs(shared: Callable[[str], Path], size: str, tied: bool) -> None:
    path = shared("qwen2-vl") / "configs" / f"Qwen2-VL-{size}-Instruct.config.json"
    config = json.loads(path.read_text())
    text, vision = parse_text_config(config), parse_vision_config(config)
    assert (text.head_dim, text.tie_word_embeddings, text.mrope_section) == (128, tied, (16, 24, 24))
    assert (vision.depth, vision.embed_dim, vision.intermediate_size, vision.head_dim, vision.patch_dim) == (
        32,
        1280,
        5120,
        80,
        1176,
    )
    assert vision.out_features == text.hidden_size


@pytest.mark.parametrize("tied", [True, False])
def test_the_weight_shapes_equal_transformers(tiny: Path, config: dict[str, Any], tied: bool) -> None:
    config["tie_word_embeddings"] = tied
    (
        model := Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_pretrained(tiny, tie_word_embeddings=tied))
    ).tie_weights()
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert parse_text_config(config).list_weight_shapes() | parse_vision_config(config).list_weight_shapes() == expected


def test_a_tied_checkpoint_lists_no_output_layer(tiny: Path) -> None:
    text = BaseCheckpoint.from_folder(tiny).load_text_config()
    assert text.tie_word_embeddings
    assert "lm_head.weight" not in text.list_weight_shapes() | dict.fromkeys(load_file(tiny / "model.safetensors"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "qwen3_vl"}, "model_type 'qwen3_vl'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "sliding-window attention"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [2, 3, 3]}}, "rope type 'yarn'"),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}},
            "mrope_section [2, 3, 4] with a head width of 16",
        ),
        ({"num_key_value_heads": 3}, "4 heads and 3 key-value heads"),
        (
            {"hidden_size": 66, "num_attention_heads": 33, "num_key_value_heads": 1},
            "33 query heads per key-value head (at most 32)",
        ),
        ({"hidden_size": 4 * 24}, "a head width of 24, not a power of two"),
        ({"hidden_size": 4 * 256}, "a head width of 256 (at most 128)"),
        ({"hidden_size": None}, "config.json has an unexpected value"),
        ({"num_hidden_layers": 0}, "a size below 1"),
    ],
)
def test_an_unsupported_feature_is_named(config: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    assert reason in str(find_unsupported_feature(config | change))
    with pytest.raises(LorgnetteError, match="the fast engine does not support this model"):
        parse_configs(config | change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "silu"}, "the vision tower's hidden_act 'silu'"),
        ({"hidden_size": 32}, "image features of 32 with a hidden size of 64"),
        ({"num_heads": 3}, "3 vision heads with an embedding width of 32"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "the vision tower's rope_parameters"),
    ],
)
def test_an_unsupported_vision_feature_is_named(config: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    assert reason in str(find_unsupported_feature(config | {"vision_config": config["vision_config"] | change}))


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_scaling", "vision_config", "num_key_value_heads"])
def test_a_missing_setting_is_not_guessed(config: dict[str, Any], name: str) -> None:
    del config[name]
    assert str(find_unsupported_feature(config)).startswith("config.json has no ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not a whole number from 1 to 512"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"intermediate_size": None}, "intermediate_size is None"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a number from 1e-12 to 1"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_scaling": {"rope_theta": 0}}, "rope_theta is 0"),
        (
            {"rope_scaling": {"mrope_section": [-2, 3, 3]}},
            "mrope_section is [-2, 3, 3], not three whole numbers from 0",
        ),
        ({"rope_scaling": {"mrope_section": [2, 3]}}, "mrope_section is [2, 3]"),
        ({"rope_scaling": [1]}, "rope_scaling is a list, not an object"),
        ({"text_config": "x"}, "text_config is text, not an object"),
        ({"vision_config": [1]}, "vision_config is a list, not an object"),
        ({"vision_config": {"depth": 10**8}}, "depth is 100000000, not a whole number from 1 to 512"),
        ({"vision_config": {"num_hidden_layers": 10**8}}, "num_hidden_layers is 100000000"),  # transformers' other name
        ({"vision_config": {"patch_size": 10**9}}, "patch_size is 1000000000"),
        ({"vision_config": {"mlp_ratio": -1}}, "mlp_ratio is -1"),
        (
            {"_attn_implementation": "somebody/kernel"},
            "_attn_implementation is 'somebody/kernel', not one of eager, sdpa, flash_attention_2",
        ),
        ({"vision_config": {"_attn_implementation": ["x"]}}, "_attn_implementation is ['x']"),
        ({"text_config": {"attn_implementation": "x"}}, "attn_implementation is 'x'"),
    ],
)
def test_an_absurd_value_is_named(config: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    assert str(find_absurd_value(config | change)).startswith(reason)


def test_no_real_config_is_absurd(config: dict[str, Any], tiny: Path, shared: Callable[[str], Path]) -> None:
    nested = Qwen2VLConfig.from_pretrained(tiny).to_dict()
    hubs = [json.loads(path.read_text()) for path in (shared("qwen2-vl") / "configs").glob("Qwen2-VL-*.config.json")]
    assert len(hubs) == 2
    for each in (config, nested, *hubs, {"vision_config": {}}, {"num_key_value_heads": None}):
        assert find_absurd_value(each) is None


@pytest.mark.parametrize(("size", "num_values"), [("2B", 2.2e9), ("7B", 8.3e9)])
def test_the_number_of_values_is_about_right(shared: Callable[[str], Path], size: str, num_values: float) -> None:
    path = shared("qwen2-vl") / "configs" / f"Qwen2-VL-{size}-Instruct.config.json"
    assert estimate_num_values(json.loads(path.read_text())) == pytest.approx(num_values, rel=0.35)
