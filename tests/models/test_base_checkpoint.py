"""A checkpoint's folder is whole, of a family we know, and told apart from any other."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import BaseCheckpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copied")


def sharded(folder: Path) -> list[Path]:
    """The same weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    files = sorted(set(place.values()))
    for file in files:
        save_file({n: t for n, t in tensors.items() if place[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": place}))
    return [folder / file for file in files]


def refused(folder: Path) -> LorgnetteError:
    with pytest.raises(LorgnetteError) as caught:
        BaseCheckpoint.from_folder(folder)
    assert caught.value.hint
    assert str(folder) in str(caught.value.where)
    return caught.value


def test_a_whole_checkpoint_is_known_by_its_model_type(copied: Path) -> None:
    found = BaseCheckpoint.from_folder(copied)
    assert found.family.model_type == "qwen2_vl"
    assert found.weight_files == (copied / "model.safetensors",)
    shards = sharded(copied)
    assert BaseCheckpoint.from_folder(copied).weight_files == tuple(shards)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").message == "no such checkpoint"
    assert "config.json is missing" in refused(tmp_path).message
    (tmp_path / "file").write_text("x")
    assert "config.json is missing" in refused(tmp_path / "file").message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"model_type": "llava"}', "model_type 'llava' is not supported"),
        ("{}", "model_type None is not supported"),
        ('{"model_type": "Qwen2_VL"}', "is not supported"),
        ("[]", "config.json cannot be read"),
        ("{", "config.json cannot be read"),
        ("", "config.json cannot be read"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copied: Path, content: str, what: str) -> None:
    (copied / "config.json").write_text(content)
    assert what in refused(copied).message


def test_missing_weights_are_named(copied: Path) -> None:
    first, second = sharded(copied)
    second.unlink()
    assert refused(copied).message == f"weights are missing: {second.name}"
    first.unlink()
    assert refused(copied).message == f"weights are missing: {first.name}, {second.name}"
    (copied / INDEX).unlink()
    assert refused(copied).message == "checkpoint has no weights: model.safetensors is missing"


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}']
)
def test_a_broken_index_is_refused(copied: Path, content: str) -> None:
    (copied / "model.safetensors").unlink()
    (copied / INDEX).write_text(content)
    assert refused(copied).message.startswith("weight index")


def test_the_fingerprint_is_the_weights_and_not_the_folder(copied: Path, tiny: Path) -> None:
    assert BaseCheckpoint.from_folder(copied).fingerprint == BaseCheckpoint.from_folder(tiny).fingerprint
    (copied / "generation_config.json").unlink()
    assert BaseCheckpoint.from_folder(copied).fingerprint == BaseCheckpoint.from_folder(tiny).fingerprint


def test_another_weight_name_or_dtype_is_another_fingerprint(copied: Path) -> None:
    path = copied / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.self_attn.q_proj.weight"
    changed = tensors[name].clone()
    changed += 1e-3
    found = {BaseCheckpoint.from_folder(copied).fingerprint}
    others = [
        tensors | {name: changed},
        {n + "x" * (n == name): tensor for n, tensor in tensors.items()},
        tensors | {name: tensors[name].half()},
    ]
    for other in others:
        save_file(other, path, metadata={"format": "pt"})
        found.add(BaseCheckpoint.from_folder(copied).fingerprint)
    shards = sharded(copied)
    found.add(BaseCheckpoint.from_folder(copied).fingerprint)
    shards[1].write_bytes(shards[1].read_bytes()[:-4] + b"\0\0\0\x7f")
    found.add(BaseCheckpoint.from_folder(copied).fingerprint)
    assert len(found) == 6


def test_the_revision_is_the_hubs_commit(tiny: Path, tmp_path: Path) -> None:
    assert BaseCheckpoint.from_folder(tiny).revision is None
    snapshot = shutil.copytree(tiny, tmp_path / "models--qwen" / "snapshots" / "0123abc")
    assert BaseCheckpoint.from_folder(snapshot).revision == "0123abc"
    (tmp_path / "link").symlink_to(snapshot)
    assert BaseCheckpoint.from_folder(tmp_path / "link").revision == "0123abc"


@pytest.mark.parametrize("files", [1, 2])
def test_a_file_that_is_not_whole(copied: Path, files: int) -> None:
    """Said from its size and header: no weight is read."""
    weights = sharded(copied)[-1] if files > 1 else copied / "model.safetensors"
    assert len(BaseCheckpoint.from_folder(copied).weight_files) == files
    whole = weights.stat().st_size
    for size, said in (
        (whole - 1, f"is cut short: {whole - 1} of {whole} bytes are there"),
        (100, "is cut short: 100 bytes are there, not its whole header"),
        (3, "is cut short: 3 bytes are there, not its whole header"),
        (0, "is empty"),
    ):
        os.truncate(weights, size)
        with pytest.raises(LorgnetteError) as caught:
            BaseCheckpoint.from_folder(copied)
        assert caught.value.message == f"weights cannot be loaded: {weights.name} {said}"
        assert caught.value.hint == "download the checkpoint again, whole"
