"""The weights that are loaded are those of the file, frozen, or it is said which are not."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.engine.hf_loading import load_base_model
from lorgnette.engine.packed_attention import ATTENTION_NAME
from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import BaseCheckpoint

CPU = torch.device("cpu")
ONE = "layers.0.mlp.gate_proj.weight"
SAVED, OURS = f"model.{ONE}", f"model.language_model.{ONE}"  # on the hub, and in transformers


def refused(folder: Path) -> LorgnetteError:
    with pytest.raises(LorgnetteError) as caught:
        load_base_model(BaseCheckpoint.from_folder(folder), CPU, torch.float32)
    assert caught.value.where == str(folder)
    assert caught.value.hint == "download the checkpoint again, whole"
    return caught.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_is_the_files_and_frozen(tiny: Path, dtype: torch.dtype) -> None:
    model = load_base_model(BaseCheckpoint.from_folder(tiny), CPU, dtype)
    state = model.state_dict()
    for name, tensor in load_file(tiny / "model.safetensors").items():
        ours = f"model.{name}" if name.startswith("visual") else name.replace("model.", "model.language_model.", 1)
        torch.testing.assert_close(state[ours], tensor.to(dtype), rtol=0, atol=0)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config.text_config._attn_implementation == ATTENTION_NAME


def test_the_checkpoints_own_sampling_is_left_behind(tiny: Path) -> None:
    assert '"do_sample": true' in (tiny / "generation_config.json").read_text()
    assert not load_base_model(BaseCheckpoint.from_folder(tiny), CPU, torch.float32).generation_config.do_sample


def test_weights_that_do_not_fit_are_counted_and_named(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    tensors = load_file(tiny / "model.safetensors")
    for changed, what in (
        ({n: t for n, t in tensors.items() if n != SAVED}, f"1 missing ({OURS})"),
        (tensors | {"extra.weight": torch.zeros(2)}, "1 unexpected (extra.weight)"),
        (tensors | {SAVED: torch.zeros(3, 3)}, f"1 of another shape ({OURS})"),
        ({n: t for n, t in tensors.items() if "visual" not in n}, "missing (model.visual.blocks.0."),
    ):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        error = refused(folder)
        assert error.message.startswith("weights do not fit the model: ")
        assert what in error.message
        assert len(error.message) < 300


@pytest.mark.parametrize("kept", [0, 4, -1000])
def test_a_download_that_was_cut_off_is_refused(tiny: Path, tmp_path: Path, kept: int) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert refused(folder).message.startswith("weights cannot be loaded: ")
