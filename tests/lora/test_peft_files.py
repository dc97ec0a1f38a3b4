"""PEFT's files are written and read without PEFT; unsupported settings are named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.engine.peft_engine import get_adapter_state, load_adapter
from lorgnette.errors import LorgnetteError
from lorgnette.lora.peft_config import CONFIG_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE, SavedAdapter, convert_lora_name
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.family import EMBEDDING
from lorgnette.models.model_config import TextConfig, VisionConfig
from lorgnette.models.registry import FAMILIES, parse_configs


@pytest.fixture
def adapter_copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture
def configs(tiny: Path) -> tuple[TextConfig, VisionConfig]:
    config = BaseCheckpoint.from_folder(tiny).load_hf_config()
    return parse_configs(config)


def change_config(folder: Path, **settings: Any) -> SavedAdapter:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | settings))
    return SavedAdapter.load(folder)


def test_written_files_read_back(saved: Path, tuned: Any, configs: tuple[TextConfig, VisionConfig]) -> None:
    adapter, state = SavedAdapter.load(saved), get_adapter_state(tuned)
    assert adapter.state.keys() == state.keys()
    assert all(torch.equal(adapter.state[name], p) for name, p in state.items())
    assert adapter.explain_unsupported(*configs) is None
    shape = adapter.build_shape(configs[0])
    assert (shape.target_modules, shape.rank, shape.scale) == (TARGET_MODULES, 4, 2.0)


def test_the_scale_equals_pefts(adapter_copy: Path, configs: tuple[TextConfig, VisionConfig]) -> None:
    assert change_config(adapter_copy, use_rslora=True).build_shape(configs[0]).scale == 4.0
    for use_rslora, scale in ((False, 2.0), (True, 4.0)):
        lora = LoraSettings(rank=4, alpha=8, use_rslora=use_rslora)
        assert AdapterShape.from_settings(configs[0], lora).scale == scale


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("bias", "all"), ("fan_in_fan_out", True), ("use_dora", True), ("lora_bias", True),
        ("rank_pattern", {"q_proj": 8}), ("alpha_pattern", {"q_proj": 8}), ("layers_to_transform", [0]),
        ("modules_to_save", ["lm_head"]), ("target_parameters", ["a"]),
        ("trainable_token_indices", [1]), ("exclude_modules", ["q_proj"]), ("alora_invocation_tokens", [10, 11]),
        ("init_lora_weights", "pissa"), ("init_lora_weights", "olora"), ("use_qalora", True), ("use_bdlora", {}),
        ("kasa_config", {}), ("monteclora_config", {}), ("velora_config", {}), ("ensure_weight_tying", True),
        ("invented_by_a_newer_peft", True), ("target_modules", "all-linear"),
    ],
)  # fmt: skip
def test_an_unsupported_setting_is_named(
    adapter_copy: Path, configs: tuple[TextConfig, VisionConfig], setting: str, value: Any
) -> None:
    assert (
        change_config(adapter_copy, **{setting: value}).explain_unsupported(*configs)
        == f"the adapter's {setting} {value!r}"
    )


@pytest.mark.parametrize("value", [True, False, "gaussian", "orthogonal", "eva"])
def test_initializations_that_keep_the_frozen_weights_are_supported(
    adapter_copy: Path, configs: tuple[TextConfig, VisionConfig], value: Any
) -> None:
    assert change_config(adapter_copy, init_lora_weights=value).explain_unsupported(*configs) is None


@pytest.mark.parametrize("settings", [{"init_lora_weights": "pissa"}, {"alora_invocation_tokens": [10, 11]}], ids=str)
def test_unsupported_settings_change_the_logits_of_the_same_tensors(
    saved: Path, adapter_copy: Path, load_tiny_model: Any, settings: Any
) -> None:
    """Why such settings are refused: PEFT computes other logits from the same files."""
    change_config(adapter_copy, **settings)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected, logits = (
            PeftModel.from_pretrained(load_tiny_model(), f)(input_ids=tokens).logits for f in (saved, adapter_copy)
        )
    assert (expected - logits).abs().max() > 1e-2


def test_an_adapter_of_the_vision_tower_is_unsupported(
    adapter_copy: Path, configs: tuple[TextConfig, VisionConfig]
) -> None:
    vision = FAMILIES["qwen2_vl"].build_target_pattern(TARGET_MODULES, ("vision",))
    for targets in (vision, ["q_proj", "qkv"]):
        reason = change_config(adapter_copy, target_modules=targets).explain_unsupported(*configs)
        assert reason == "an adapter of the vision tower"


def test_an_adapter_of_the_output_layer_is_unsupported(
    adapter_copy: Path, configs: tuple[TextConfig, VisionConfig]
) -> None:
    """Also if the output layer is tied, so that the files have no weight of that name."""
    for name in ("lm_head", "embed_tokens"):
        reason = change_config(adapter_copy, target_modules=["q_proj", name]).explain_unsupported(*configs)
        assert name in str(reason)


def test_a_config_written_by_peft_is_supported(
    tiny: Path, tmp_path: Path, load_tiny_model: Callable[[], Any], configs: tuple[TextConfig, VisionConfig]
) -> None:
    """With every key that PEFT writes, and target_modules as a list of names."""
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["down_proj", "k_proj"], init_lora_weights=False)
    get_peft_model(load_tiny_model(), config).save_pretrained(tmp_path)
    adapter = SavedAdapter.load(tmp_path)
    assert adapter.explain_unsupported(*configs) is None
    shape = adapter.build_shape(configs[0])
    assert (shape.target_modules, shape.rank, shape.scale) == (("k_proj", "down_proj"), 2, 3.0)


def test_peft_reads_the_written_files(saved: Path, tuned: Any, load_tiny_model: Callable[[], Any]) -> None:
    peft_model, state = PeftModel.from_pretrained(load_tiny_model(), saved), get_adapter_state(tuned)
    loaded_state = get_adapter_state(peft_model)
    assert loaded_state.keys() == state.keys()
    assert all(torch.equal(loaded_state[name], p) for name, p in state.items())
    config = peft_model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.5)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected = tuned.eval()(input_ids=tokens).logits
        assert torch.equal(peft_model(input_ids=tokens).logits, expected)
        with peft_model.disable_adapter():
            assert not torch.allclose(peft_model(input_ids=tokens).logits, expected, atol=1e-2)


def test_names_of_older_transformers_are_converted(adapter_copy: Path, tuned: Any) -> None:
    state = {
        n.replace(".language_model.layers.", ".layers."): t for n, t in load_file(adapter_copy / WEIGHTS_FILE).items()
    }
    save_file(state, adapter_copy / WEIGHTS_FILE)
    assert SavedAdapter.load(adapter_copy).state.keys() == get_adapter_state(tuned).keys()


def test_missing_unknown_and_misshapen_tensors_are_named(
    adapter_copy: Path, configs: tuple[TextConfig, VisionConfig]
) -> None:
    state = load_file(adapter_copy / WEIGHTS_FILE)
    name = sorted(state)[3]
    tensor = state.pop(name)
    rows, columns = tensor.shape
    for tensors, message in (
        (state, f"27 of 28 adapter tensors match the model; these do not: {name}"),
        (state | {name: tensor, "odd": tensor.clone()}, "28 of 28 adapter tensors match the model; these do not: odd"),
        (
            state | {name: tensor[:-1].contiguous()},
            f"adapter does not fit the model: {name} is [{rows - 1}, {columns}], not [{rows}, {columns}]",
        ),
    ):
        save_file(tensors, adapter_copy / WEIGHTS_FILE)
        with pytest.raises(LorgnetteError) as caught:
            SavedAdapter.load(adapter_copy).build_shape(configs[0])
        assert (caught.value.message, caught.value.where) == (message, str(adapter_copy))


def test_an_invalid_target_pattern_is_refused(adapter_copy: Path, configs: tuple[TextConfig, VisionConfig]) -> None:
    with pytest.raises(LorgnetteError, match=f"{CONFIG_FILE}: target_modules is no regular expression: "):
        change_config(adapter_copy, target_modules="(")


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match="an empty folder, not an adapter"):
        SavedAdapter.load(tmp_path)


def test_a_tensor_under_two_names_is_refused(adapter_copy: Path) -> None:
    """The later one would silently win."""
    state = load_file(adapter_copy / WEIGHTS_FILE)
    name = next(name for name in state if "layers.1" in name)
    save_file(state | {name.replace(".language_model", ""): state[name] * 2}, adapter_copy / WEIGHTS_FILE)
    with pytest.raises(LorgnetteError, match="1 of 29 tensors are there under an old and a new name"):
        SavedAdapter.load(adapter_copy)


def test_tensors_are_compared_with_the_model(adapter_copy: Path, configs: tuple[TextConfig, VisionConfig]) -> None:
    """Of every linear layer: decoder, vision tower, merger, output layer."""
    for pattern, name, shape in (
        ("model.visual.merger.mlp.2", "model.visual.merger.mlp.2", (64, 128)),
        ("lm_head", "lm_head", None),
        (r"model\.visual\.blocks\.1\.attn\.qkv", "model.visual.blocks.1.attn.qkv", None),
    ):
        adapter = change_config(adapter_copy, target_modules=pattern)
        shapes = configs[0].list_weight_shapes() | configs[1].list_weight_shapes()
        outputs, inputs = shape or shapes.get(f"{name}.weight") or shapes[EMBEDDING]
        factors = {"A": torch.ones(4, inputs), "B": torch.ones(outputs, 4)}
        state = {f"base_model.model.{name}.lora_{side}.weight": factor for side, factor in factors.items()}
        replace(adapter, state=state).check_fits(*configs)
        state[f"base_model.model.{name}.lora_B.weight"] = torch.ones(outputs + 1, 4)
        with pytest.raises(LorgnetteError, match=rf"lora_B.weight is \[{outputs + 1}, 4\], not \[{outputs}, 4\]"):
            replace(adapter, state=state).check_fits(*configs)
        with pytest.raises(LorgnetteError, match="0 of 2 adapter tensors match the model"):
            adapter.check_fits(*configs)


def test_a_pattern_of_old_names_finds_their_modules(adapter_copy: Path, load_tiny_model: Callable[[], Any]) -> None:
    """PEFT from before transformers 4.52 wrote patterns of the old names: `model.layers` has no `language_model`."""
    state = {n.replace(".language_model", ""): t for n, t in load_file(adapter_copy / WEIGHTS_FILE).items()}
    config = json.loads((adapter_copy / CONFIG_FILE).read_text())
    pattern = r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    alphas = {"model.layers.1.mlp.up_proj": 4}
    (adapter_copy / CONFIG_FILE).write_text(json.dumps(config | {"target_modules": pattern, "alpha_pattern": alphas}))
    save_file(state, adapter_copy / WEIGHTS_FILE)
    model = load_adapter(load_tiny_model(), adapter_copy)
    assert get_adapter_state(model).keys() == {convert_lora_name(name) for name in state}
    layers = model.get_base_model().model.language_model.layers
    assert [layer.mlp.up_proj.scaling["default"] for layer in layers] == [2.0, 1.0]
