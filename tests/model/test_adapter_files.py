"""PEFT's files, written and read without PEFT; what our engine cannot compute is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.config import LANGUAGE_TARGETS, Lora
from lorgnette.errors import LorgnetteError
from lorgnette.families import FAMILIES
from lorgnette.model.adapter import adapter_state
from lorgnette.model.adapter_files import CONFIG, WEIGHTS, SavedAdapter, scale_of
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.shapes import TextShape, VisionShape, config_of


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copied")


@pytest.fixture
def shapes(tiny: Path) -> tuple[TextShape, VisionShape]:
    config = config_of(Checkpoint.at(tiny))
    return TextShape.of(config), VisionShape.of(config)


def changed(folder: Path, **settings: Any) -> SavedAdapter:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | settings))
    return SavedAdapter.read(folder)


def test_what_was_written_is_read(saved: Path, tuned: Any, shapes: tuple[TextShape, VisionShape]) -> None:
    read, state = SavedAdapter.read(saved), adapter_state(tuned)
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[name], p) for name, p in state.items())
    assert read.unsupported(*shapes) is None
    shape = read.shape(shapes[0])
    assert (shape.targets, shape.rank, shape.scale) == (LANGUAGE_TARGETS, 4, 2.0)


def test_the_scale_is_pefts(copied: Path, shapes: tuple[TextShape, VisionShape]) -> None:
    assert changed(copied, use_rslora=True).shape(shapes[0]).scale == 4.0
    assert scale_of(Lora(rank=4, alpha=8)) == 2.0
    assert scale_of(Lora(rank=4, alpha=8, rslora=True)) == 4.0


def test_what_our_engine_cannot_compute_is_named(copied: Path, shapes: tuple[TextShape, VisionShape]) -> None:
    assert changed(copied, use_dora=True).unsupported(*shapes) == "the adapter's use_dora True"
    vision = FAMILIES["qwen2_vl"].target_pattern(LANGUAGE_TARGETS, ("vision",))
    found = changed(copied, use_dora=False, target_modules=vision)
    assert found.unsupported(*shapes) == "an adapter of the vision tower"


def test_names_of_older_transformers_are_todays(copied: Path, tuned: Any) -> None:
    state = {n.replace(".language_model.layers.", ".layers."): t for n, t in load_file(copied / WEIGHTS).items()}
    save_file(state, copied / WEIGHTS)
    assert SavedAdapter.read(copied).state.keys() == adapter_state(tuned).keys()


def test_a_missing_and_an_odd_tensor_are_refused_by_name(copied: Path, shapes: tuple[TextShape, VisionShape]) -> None:
    state = load_file(copied / WEIGHTS)
    name = sorted(state)[3]
    whole = state.pop(name)
    for given in (state, state | {name: whole[:-1].contiguous()}):
        save_file(given, copied / WEIGHTS)
        with pytest.raises(LorgnetteError) as caught:
            SavedAdapter.read(copied).shape(shapes[0])
        assert name in str(caught.value)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match=f"{CONFIG} is missing"):
        SavedAdapter.read(tmp_path)
