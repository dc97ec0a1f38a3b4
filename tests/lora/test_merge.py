"""A merged checkpoint is the base's folder with other weights, and answers as base and adapter together do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.engine import peft_adapter
from lorgnette.engine.hf_loading import load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.lora.merge import find_stored_dtype, write_merged_checkpoint
from lorgnette.models.base_checkpoint import BaseCheckpoint


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(40)[None]).logits
    return found


@pytest.fixture
def whole(tiny: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint stored in float32."""
    folder = shutil.copytree(tiny, tmp_path / "whole")
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_folder_is_the_bases_with_the_sum(
    whole: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path
) -> None:
    tuned = peft_adapter.load_adapter(loaded(), saved)
    together, alone = logits(tuned), logits(loaded())
    write_merged_checkpoint(tuned, BaseCheckpoint.from_folder(whole), tmp_path / "merged")
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {path.name for path in whole.iterdir()}
    for path in whole.iterdir():
        if path.suffix == ".json":
            assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()
    found = logits(load_base_model(BaseCheckpoint.from_folder(tmp_path / "merged"), torch.device("cpu"), torch.float32))
    torch.testing.assert_close(found, together, atol=1e-4, rtol=0)
    assert (found - alone).abs().max() > 1e-2  # the adapter says something


def test_names_and_untouched_tensors_are_the_bases(
    tiny: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path
) -> None:
    before = load_file(tiny / "model.safetensors")
    assert "lm_head.weight" not in before  # tied, and stored once
    write_merged_checkpoint(
        peft_adapter.load_adapter(loaded(), saved), BaseCheckpoint.from_folder(tiny), tmp_path / "merged"
    )
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert len(changed) == 2 * 7
    assert all(name.startswith("model.layers.") and name.endswith("_proj.weight") for name in changed)


def test_shards_and_dtypes_are_the_bases(
    tiny: Path, whole: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path
) -> None:
    """A hub's folder: two shards and their index, in bf16 but for one tensor; and what is the base's alone."""
    base = shutil.copytree(tiny, tmp_path / "base")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (i > 20)}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(places.values())):
        save_file({name: tensors[name] for name in names if places[name] == shard}, base / shard, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (base / "manifest.json").write_text("{}")
    write_merged_checkpoint(
        peft_adapter.load_adapter(loaded(), saved), BaseCheckpoint.from_folder(base), tmp_path / "merged"
    )
    made = {path.name for path in (tmp_path / "merged").iterdir()}
    assert made == {path.name for path in base.iterdir()} - {"manifest.json"}
    for shard in sorted(set(places.values())):
        before, after = load_file(base / shard), load_file(tmp_path / "merged" / shard)
        assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in before.items()}
        assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in before.items()}
        assert (tmp_path / "merged" / shard).stat().st_mode & 0o777 == (base / "config.json").stat().st_mode & 0o777
    load_base_model(BaseCheckpoint.from_folder(tmp_path / "merged"), torch.device("cpu"), torch.bfloat16)
    assert (
        find_stored_dtype(BaseCheckpoint.from_folder(base)),
        find_stored_dtype(BaseCheckpoint.from_folder(whole)),
    ) == ("BF16", "F32")


def test_a_tensor_the_model_does_not_have(tiny: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"model.odd": torch.zeros(1)}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(LorgnetteError, match=r"no tensor for model\.odd"):
        write_merged_checkpoint(
            peft_adapter.load_adapter(loaded(), saved), BaseCheckpoint.from_folder(base), tmp_path / "merged"
        )
    assert not (tmp_path / "merged").exists()
