"""A merged checkpoint has the base's files with other weights, and gives the logits of base plus adapter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.engine.peft_engine import load_adapter, load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.lora.merge import find_stored_dtype, write_merged_checkpoint
from lorgnette.models.base_checkpoint import BaseCheckpoint


def compute_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(40)[None]).logits
    return logits


@pytest.fixture
def float32_base(tiny: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint stored in float32."""
    folder = shutil.copytree(tiny, tmp_path / "float32")
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_merged_folder_has_the_base_files_and_the_sum(
    float32_base: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path
) -> None:
    tuned = load_adapter(loaded(), saved)
    with_adapter, without = compute_logits(tuned), compute_logits(loaded())
    write_merged_checkpoint(tuned, BaseCheckpoint.from_folder(float32_base), tmp_path / "merged")
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {path.name for path in float32_base.iterdir()}
    for path in float32_base.iterdir():
        if path.suffix == ".json":
            assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()
    merged = load_base_model(BaseCheckpoint.from_folder(tmp_path / "merged"), torch.device("cpu"), torch.float32)
    logits = compute_logits(merged)
    torch.testing.assert_close(logits, with_adapter, atol=1e-4, rtol=0)
    assert (logits - without).abs().max() > 1e-2  # negative control: the adapter changes the logits


def test_names_and_unadapted_tensors_equal_the_base(
    tiny: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path
) -> None:
    before = load_file(tiny / "model.safetensors")
    assert "lm_head.weight" not in before  # tied, and stored once
    write_merged_checkpoint(load_adapter(loaded(), saved), BaseCheckpoint.from_folder(tiny), tmp_path / "merged")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert len(changed) == 2 * 7
    assert all(name.startswith("model.layers.") and name.endswith("_proj.weight") for name in changed)


def test_shards_and_dtypes_equal_the_base(
    tiny: Path, float32_base: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path
) -> None:
    """A hub's folder: two shards and their index, in bf16 except one tensor, and a file that is not copied."""
    base = shutil.copytree(tiny, tmp_path / "base")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {name: f"model-0000{1 + (i > 20)}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(shards.values())):
        save_file({name: tensors[name] for name in names if shards[name] == shard}, base / shard, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (base / "manifest.json").write_text("{}")
    write_merged_checkpoint(load_adapter(loaded(), saved), BaseCheckpoint.from_folder(base), tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {path.name for path in base.iterdir()} - {"manifest.json"}
    for shard in sorted(set(shards.values())):
        before, after = load_file(base / shard), load_file(tmp_path / "merged" / shard)
        assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in before.items()}
        assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in before.items()}
        assert (tmp_path / "merged" / shard).stat().st_mode & 0o777 == (base / "config.json").stat().st_mode & 0o777
    load_base_model(BaseCheckpoint.from_folder(tmp_path / "merged"), torch.device("cpu"), torch.bfloat16)
    assert find_stored_dtype(BaseCheckpoint.from_folder(base)) == "BF16"
    assert find_stored_dtype(BaseCheckpoint.from_folder(float32_base)) == "F32"


def test_a_tensor_unknown_to_the_model_is_refused(
    tiny: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path
) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"model.odd": torch.zeros(1)}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(LorgnetteError, match=r"no tensor for model\.odd"):
        write_merged_checkpoint(load_adapter(loaded(), saved), BaseCheckpoint.from_folder(base), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
