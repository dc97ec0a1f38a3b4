"""The settings of an adapter on disk are read from the names in its files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.engine.peft_engine import add_adapter, get_adapter_state, load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.lora.adapter_settings import check_modules, read_lora_settings
from lorgnette.lora.peft_config import PREFIX, WEIGHTS_FILE
from lorgnette.lora.peft_files import write_adapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import FAMILIES

WITHOUT_EXPERTS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""What an adapter of all seven projections has in Qwen3-VL-MoE."""
SETTINGS = [
    ("qwen2_vl", LoraSettings(rank=2, alpha=3, use_rslora=True)),
    ("qwen2_vl", LoraSettings(rank=1, alpha=16, target_modules=("v_proj", "down_proj"))),
    ("qwen2_vl", LoraSettings(rank=2, alpha=16, parts=("language", "merger", "vision"))),
    ("qwen2_vl", LoraSettings(rank=2, alpha=16, parts=("vision",))),
    ("qwen3_vl", LoraSettings(rank=2, alpha=16, parts=("merger",))),  # with deepstack's
    ("qwen3_vl_moe", LoraSettings(rank=2, alpha=16, target_modules=WITHOUT_EXPERTS)),
    ("qwen3_5", LoraSettings(rank=2, alpha=16, target_modules=("q_proj", "up_proj"))),
    ("qwen3_5_moe", LoraSettings(rank=2, alpha=16)),
]


@pytest.mark.parametrize(("model_type", "lora"), SETTINGS, ids=repr)
def test_settings_come_back_from_the_files(
    model_type: str, lora: LoraSettings, adapter_metadata: Any, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    family, checkpoint = FAMILIES[model_type], BaseCheckpoint.from_folder(tiny_family(model_type))
    model = load_base_model(checkpoint, torch.device("cpu"), torch.float32)
    state = get_adapter_state(add_adapter(model, family, lora, seed=0))
    write_adapter(tmp_path, state, family, lora, adapter_metadata)
    settings = LoraSettings(**read_lora_settings(tmp_path))
    assert settings.model_dump(exclude={"dropout"}) == lora.model_dump(exclude={"dropout"})
    weights, pattern = checkpoint.list_weights(), family.build_target_pattern(lora.target_modules, lora.parts)
    check_modules(tmp_path, state, weights, pattern)
    if model_type == "qwen3_vl_moe":  # the same adapter
        check_modules(tmp_path, state, weights, family.build_target_pattern(TARGET_MODULES, lora.parts))
    one_less = [name for name in state if name.partition(".lora_")[0] != next(iter(state)).partition(".lora_")[0]]
    for factors, kind in (
        (one_less, "leaves out"),
        ([*state, f"{PREFIX}lm_head.lora_A.weight"], "also adapts lm_head"),
    ):
        with pytest.raises(LorgnetteError, match=f"cannot be trained further: it {kind}"):
            check_modules(tmp_path, factors, weights, pattern)


def test_old_names_and_other_modules(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "adapter")
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({name.replace(".language_model.", "."): t for name, t in tensors.items()}, folder / WEIGHTS_FILE)
    assert read_lora_settings(folder)["target_modules"] == TARGET_MODULES
    save_file(tensors | {f"{PREFIX}lm_head.lora_A.weight": torch.ones(4, 64)}, folder / WEIGHTS_FILE)
    with pytest.raises(LorgnetteError, match=r"it has lm_head.lora_A.weight, which no setting of lora.\* makes"):
        read_lora_settings(folder)
    (folder / WEIGHTS_FILE).write_bytes(b"short")
    with pytest.raises(LorgnetteError, match=f"{WEIGHTS_FILE} is .*copy the adapter's folder again"):
        read_lora_settings(folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(LorgnetteError, match=f"{WEIGHTS_FILE} is missing"):
        read_lora_settings(folder)
