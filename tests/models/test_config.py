"""The sizes in every family's config.json. Some tests read the hub's own files, and skip without them."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import (
    FAMILIES,
    estimate_num_values,
    find_absurd_value,
    find_unsupported_feature,
    parse_configs,
    parse_sizes,
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


@pytest.mark.parametrize(
    ("model_type", "section", "change", "reason"),
    [
        ("qwen2_5_vl", None, {"num_key_value_heads": 3}, "4 heads and 3 key-value heads"),
        (
            "qwen2_5_vl",
            None,
            {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}},
            "mrope_section [2, 3, 4]",
        ),
        ("qwen2_5_vl", None, {"use_sliding_window": True, "max_window_layers": 1}, "sliding-window attention"),
        ("qwen2_5_vl", "vision_config", {"window_size": 27}, "a window_size of 27 with image tokens of 28"),
        ("qwen3_vl", "text_config", {"layer_types": ["sliding_attention"] * 4}, "sliding-window attention"),
        ("qwen3_vl", "text_config", {"layer_types": 5}, "config.json has an unexpected value"),
        ("qwen3_vl", "vision_config", {"in_channels": 1}, "images of 1 channels, not 3"),
        ("qwen3_vl", "vision_config", {"num_heads": 3}, "3 vision heads with an embedding width of 32"),
        ("qwen3_vl", "vision_config", {"deepstack_visual_indexes": [1, 9]}, "deepstack_visual_indexes [1, 9]"),
        ("qwen3_vl_moe", "vision_config", {"deepstack_visual_indexes": [1, 1]}, "deepstack_visual_indexes [1, 1]"),
        ("qwen3_5_moe", None, {"text_config": None}, "text_config is missing"),
        ("qwen3_5", "vision_config", {"out_hidden_size": 48}, "image features of 48 with a hidden size of 64"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_before_any_engine(
    tiny_family: Callable[[str], Path],
    tmp_path: Path,
    model_type: str,
    section: str | None,
    change: dict[str, object],
    reason: str,
) -> None:
    """transformers fails at the first image, or computes something else."""
    config = json.loads((tiny_family(model_type) / "config.json").read_text())
    (config[section] if section else config).update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LorgnetteError, match=re.escape(f"config.json cannot be used: {reason}")) as caught:
        BaseCheckpoint.from_folder(tmp_path, needs_weights=False)
    assert caught.value.where == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("root", "text", "is_tied"), [(None, True, True), (False, True, False), (True, False, True), (None, None, False)]
)
def test_the_root_says_first_whether_the_output_layer_is_tied(
    tiny_family: Callable[[str], Path], root: bool | None, text: bool | None, is_tied: bool
) -> None:
    """As transformers reads it; its class default of Qwen3-VL-MoE's text_config is another one than the root's."""
    config = json.loads((tiny_family("qwen3_vl") / "config.json").read_text())
    for section, value in ((config, root), (config["text_config"], text)):
        section.pop("tie_word_embeddings")
        section.update({} if value is None else {"tie_word_embeddings": value})
    assert parse_sizes(config)[0].tie_word_embeddings == is_tied


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_config_that_transformers_saved_has_the_same_sizes(
    tiny_family: Callable[[str], Path], tmp_path: Path, model_type: str
) -> None:
    """It has other names and another layout than the hub's file."""
    hf_config = BaseCheckpoint.from_folder(tiny_family(model_type)).load_hf_config()
    class_name = FAMILIES[model_type].class_name.replace("ForConditionalGeneration", "Config")
    getattr(transformers, class_name).from_pretrained(tiny_family(model_type)).save_pretrained(tmp_path)
    assert parse_sizes(json.loads((tmp_path / "config.json").read_text())) == parse_sizes(hf_config)


@pytest.mark.parametrize("name", ["deepstack_visual_indexes", "fullatt_block_indexes"])
@pytest.mark.parametrize("value", [[-1], [10**9], ["1"], {"a": 1}])
def test_an_absurd_list_of_blocks_is_named(name: str, value: object) -> None:
    assert str(find_absurd_value({"vision_config": {name: value}})).startswith(f"{name} is ")
    assert find_absurd_value({"vision_config": {name: [0, 5]}}) is None
