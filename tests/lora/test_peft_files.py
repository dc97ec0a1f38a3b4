"""PEFT's files, written and read without PEFT; what our engine cannot compute is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.engine.peft_adapter import get_adapter_state
from lorgnette.errors import LorgnetteError
from lorgnette.lora.peft_files import CONFIG_FILE, WEIGHTS_FILE, SavedAdapter, compute_scale
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig, load_hf_config
from lorgnette.models.qwen2_vl.family import FAMILIES


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copied")


@pytest.fixture
def shapes(tiny: Path) -> tuple[TextConfig, VisionConfig]:
    config = load_hf_config(BaseCheckpoint.from_folder(tiny))
    return TextConfig.from_hf_config(config), VisionConfig.from_hf_config(config)


def changed(folder: Path, **settings: Any) -> SavedAdapter:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | settings))
    return SavedAdapter.load(folder)


def test_what_was_written_is_read(saved: Path, tuned: Any, shapes: tuple[TextConfig, VisionConfig]) -> None:
    read, state = SavedAdapter.load(saved), get_adapter_state(tuned)
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[name], p) for name, p in state.items())
    assert read.explain_unsupported(*shapes) is None
    shape = read.build_shape(shapes[0])
    assert (shape.target_modules, shape.rank, shape.scale) == (TARGET_MODULES, 4, 2.0)


def test_the_scale_is_pefts(copied: Path, shapes: tuple[TextConfig, VisionConfig]) -> None:
    assert changed(copied, use_rslora=True).build_shape(shapes[0]).scale == 4.0
    assert compute_scale(LoraSettings(rank=4, alpha=8)) == 2.0
    assert compute_scale(LoraSettings(rank=4, alpha=8, use_rslora=True)) == 4.0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peft_type", "LOHA"), ("bias", "all"), ("fan_in_fan_out", True), ("use_dora", True), ("lora_bias", True),
        ("rank_pattern", {"q_proj": 8}), ("alpha_pattern", {"q_proj": 8}), ("layers_to_transform", [0]),
        ("layer_replication", [[0, 2]]), ("modules_to_save", ["lm_head"]), ("target_parameters", ["a"]),
        ("trainable_token_indices", [1]), ("exclude_modules", ["q_proj"]), ("alora_invocation_tokens", [10, 11]),
        ("init_lora_weights", "pissa"), ("init_lora_weights", "olora"), ("use_qalora", True), ("use_bdlora", {}),
        ("arrow_config", {}), ("kasa_config", {}), ("monteclora_config", {}), ("velora_config", {}),
    ],
)  # fmt: skip
def test_what_our_engine_cannot_compute_is_named(
    copied: Path, shapes: tuple[TextConfig, VisionConfig], setting: str, value: Any
) -> None:
    assert changed(copied, **{setting: value}).explain_unsupported(*shapes) == f"the adapter's {setting} {value!r}"


@pytest.mark.parametrize("value", [True, False, "gaussian", "orthogonal", "eva"])
def test_how_factors_were_first_drawn_does_not_matter(
    copied: Path, shapes: tuple[TextConfig, VisionConfig], value: Any
) -> None:
    assert changed(copied, init_lora_weights=value).explain_unsupported(*shapes) is None


@pytest.mark.parametrize("settings", [{"init_lora_weights": "pissa"}, {"alora_invocation_tokens": [10, 11]}], ids=str)
def test_the_same_tensors_may_mean_something_else(saved: Path, copied: Path, loaded: Any, settings: Any) -> None:
    """Why such settings are refused: PEFT computes something else from the files."""
    changed(copied, **settings)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        plain, other = (PeftModel.from_pretrained(loaded(), f)(input_ids=tokens).logits for f in (saved, copied))
    assert (plain - other).abs().max() > 1e-2


def test_an_adapter_of_the_vision_tower_is_not_ours(copied: Path, shapes: tuple[TextConfig, VisionConfig]) -> None:
    vision = FAMILIES["qwen2_vl"].build_target_pattern(TARGET_MODULES, ("vision",))
    for targets in (vision, ["q_proj", "qkv"]):
        found = changed(copied, target_modules=targets).explain_unsupported(*shapes)
        assert found == "an adapter of the vision tower"


def test_pefts_own_config_is_computed(
    tiny: Path, tmp_path: Path, loaded: Callable[[], Any], shapes: tuple[TextConfig, VisionConfig]
) -> None:
    """With every key that PEFT writes today, and targets as a list of names."""
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["down_proj", "k_proj"], init_lora_weights=False)
    get_peft_model(loaded(), config).save_pretrained(tmp_path)
    read = SavedAdapter.load(tmp_path)
    assert read.explain_unsupported(*shapes) is None
    shape = read.build_shape(shapes[0])
    assert (shape.target_modules, shape.rank, shape.scale) == (("k_proj", "down_proj"), 2, 3.0)


def test_peft_reads_what_was_written(saved: Path, tuned: Any, loaded: Callable[[], Any]) -> None:
    theirs, state = PeftModel.from_pretrained(loaded(), saved), get_adapter_state(tuned)
    found = get_adapter_state(theirs)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], p) for name, p in state.items())
    config = theirs.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.5)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        wanted = tuned.eval()(input_ids=tokens).logits
        assert torch.equal(theirs(input_ids=tokens).logits, wanted)
        with theirs.disable_adapter():
            assert not torch.allclose(theirs(input_ids=tokens).logits, wanted, atol=1e-2)


def test_names_of_older_transformers_are_todays(copied: Path, tuned: Any) -> None:
    state = {n.replace(".language_model.layers.", ".layers."): t for n, t in load_file(copied / WEIGHTS_FILE).items()}
    save_file(state, copied / WEIGHTS_FILE)
    assert SavedAdapter.load(copied).state.keys() == get_adapter_state(tuned).keys()


def test_a_missing_and_an_odd_tensor_are_refused_by_name(copied: Path, shapes: tuple[TextConfig, VisionConfig]) -> None:
    state = load_file(copied / WEIGHTS_FILE)
    name = sorted(state)[3]
    whole = state.pop(name)
    rows, columns = whole.shape
    for given, what in (
        (state, f"27 of 28 adapter tensors match the model; these do not: {name}"),
        (state | {name: whole, "odd": whole.clone()}, "28 of 28 adapter tensors match the model; these do not: odd"),
        (
            state | {name: whole[:-1].contiguous()},
            f"adapter does not fit the model: {name} is [{rows - 1}, {columns}], not [{rows}, {columns}]",
        ),
    ):
        save_file(given, copied / WEIGHTS_FILE)
        with pytest.raises(LorgnetteError) as caught:
            SavedAdapter.load(copied).build_shape(shapes[0])
        assert (caught.value.message, caught.value.where) == (what, str(copied))


def test_targets_that_are_no_pattern_are_refused(copied: Path, shapes: tuple[TextConfig, VisionConfig]) -> None:
    with pytest.raises(LorgnetteError, match=f"{CONFIG_FILE} does not fit: "):
        changed(copied, target_modules="(").build_shape(shapes[0])


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match=f"{CONFIG_FILE} is missing"):
        SavedAdapter.load(tmp_path)
