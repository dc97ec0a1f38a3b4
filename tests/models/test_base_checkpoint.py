"""A checkpoint's files are complete, its family is known, and its fingerprint tells it from others."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_nf4_checkpoint

from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.quantization import QLORA, Quantization

INDEX = "model.safetensors.index.json"


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


def split_into_shards(folder: Path) -> list[Path]:
    """The same weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    files = sorted(set(weight_map.values()))
    for file in files:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return [folder / file for file in files]


def load_broken(folder: Path) -> LorgnetteError:
    with pytest.raises(LorgnetteError) as caught:
        BaseCheckpoint.from_folder(folder)
    assert caught.value.hint
    assert str(folder) in str(caught.value.where)
    return caught.value


def test_a_complete_checkpoint_has_a_family_and_files(copy: Path) -> None:
    checkpoint = BaseCheckpoint.from_folder(copy)
    assert checkpoint.family.model_type == "qwen2_vl"
    assert checkpoint.weight_files == (copy / "model.safetensors",)
    shards = split_into_shards(copy)
    assert BaseCheckpoint.from_folder(copy).weight_files == tuple(shards)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    assert load_broken(tmp_path / "none").message == "no such model"
    assert load_broken(tmp_path).message == "an empty folder, not a model"
    (tmp_path / "file").write_text("x")
    assert load_broken(tmp_path / "file").message == "a file, not a folder"


def test_a_checkpoint_of_pickles_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    error = load_broken(copy)
    assert error.message == "a model with weights in pickles (.bin) alone"
    assert "save_pretrained(" in str(error.hint)


def test_weights_are_listed_by_their_current_names(copy: Path, tiny: Path) -> None:
    names = BaseCheckpoint.from_folder(tiny).list_weights()
    assert len(names) == len(load_file(tiny / "model.safetensors"))
    assert {name.partition(".layers.")[0] for name in names if ".layers." in name} == {"model.language_model"}
    split_into_shards(copy)
    assert sorted(BaseCheckpoint.from_folder(copy).list_weights()) == sorted(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "llava"}', "model_type 'llava' is not supported"),
        ("{}", "model_type None is not supported"),
        ('{"model_type": "Qwen2_VL"}', "is not supported"),
        ("[]", "config.json cannot be read"),
        ("{", "config.json cannot be read"),
        ("", "config.json cannot be read"),
    ],
)
def test_an_unsupported_or_broken_config_is_refused(copy: Path, content: str, message: str) -> None:
    (copy / "config.json").write_text(content)
    assert message in load_broken(copy).message


def test_missing_weights_are_named(copy: Path) -> None:
    first, second = split_into_shards(copy)
    second.unlink()
    assert load_broken(copy).message == f"weights are missing: {second.name}"
    first.unlink()
    assert load_broken(copy).message == f"weights are missing: {first.name}, {second.name}"
    (copy / INDEX).unlink()
    assert load_broken(copy).message == "checkpoint has no weights: model.safetensors is missing"


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}']
)
def test_a_broken_index_is_refused(copy: Path, content: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / INDEX).write_text(content)
    assert load_broken(copy).message.startswith(("weight index", f"{INDEX} cannot be read"))


def test_the_fingerprint_depends_on_the_weights_alone(copy: Path, tiny: Path) -> None:
    assert BaseCheckpoint.from_folder(copy).fingerprint == BaseCheckpoint.from_folder(tiny).fingerprint
    (copy / "generation_config.json").unlink()
    assert BaseCheckpoint.from_folder(copy).fingerprint == BaseCheckpoint.from_folder(tiny).fingerprint


def test_another_weight_name_or_dtype_gives_another_fingerprint(copy: Path) -> None:
    path = copy / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.self_attn.q_proj.weight"
    changed = tensors[name].clone()
    changed += 1e-3
    fingerprints = {BaseCheckpoint.from_folder(copy).fingerprint}
    variants = [
        tensors | {name: changed},
        {n + "x" * (n == name): tensor for n, tensor in tensors.items()},
        tensors | {name: tensors[name].half()},
    ]
    for variant in variants:
        save_file(variant, path, metadata={"format": "pt"})
        fingerprints.add(BaseCheckpoint.from_folder(copy).fingerprint)
    shards = split_into_shards(copy)
    fingerprints.add(BaseCheckpoint.from_folder(copy).fingerprint)
    shards[1].write_bytes(shards[1].read_bytes()[:-4] + b"\0\0\0\x7f")
    fingerprints.add(BaseCheckpoint.from_folder(copy).fingerprint)
    assert len(fingerprints) == 6


def test_the_revision_is_the_hubs_commit(tiny: Path, tmp_path: Path) -> None:
    assert BaseCheckpoint.from_folder(tiny).revision is None
    snapshot = shutil.copytree(tiny, tmp_path / "models--qwen" / "snapshots" / "0123abc")
    assert BaseCheckpoint.from_folder(snapshot).revision == "0123abc"
    (tmp_path / "link").symlink_to(snapshot)
    assert BaseCheckpoint.from_folder(tmp_path / "link").revision == "0123abc"


@pytest.mark.parametrize("files", [1, 2])
def test_a_truncated_file_is_refused(copy: Path, files: int) -> None:
    """Judged by its size and header: no weight is read."""
    weights = split_into_shards(copy)[-1] if files > 1 else copy / "model.safetensors"
    assert len(BaseCheckpoint.from_folder(copy).weight_files) == files
    full_size = weights.stat().st_size
    for size, reason in (
        (full_size - 1, f"is truncated: it has {full_size - 1} of {full_size} bytes"),
        (100, "is truncated: its header is longer than its 100 bytes"),
        (3, "is truncated: its header is longer than its 3 bytes"),
        (0, "is empty"),
    ):
        os.truncate(weights, size)
        with pytest.raises(LorgnetteError) as caught:
            BaseCheckpoint.from_folder(copy)
        assert caught.value.message == f"weights cannot be loaded: {weights.name} {reason}"
        assert caught.value.hint == "download the checkpoint again, whole"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "config.json cannot be used: num_hidden_layers is 1000000000"),
        ({"vocab_size": 2**22}, "config.json describes a model of "),
        ({"num_hidden_layers": 512, "intermediate_size": 2**14}, "config.json describes a model of "),
    ],
)
def test_a_model_that_would_fill_the_memory_is_refused(copy: Path, change: dict[str, int], message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    assert load_broken(copy).message.startswith(message)


def test_integer_weights_need_a_quantization_config(copy: Path) -> None:
    """transformers would take the integers for values."""
    weights, config = copy / "model.safetensors", copy / "config.json"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name].to(torch.int8)}, weights)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": None}))
    assert load_broken(copy).message.endswith(f"{name} is stored as I8, without quantization_config in config.json")
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": nf4}))
    assert load_broken(copy).message.endswith(f"{name} is stored as I8, and is no NF4 weight")


def test_another_quantization_is_refused_before_weights_are_looked_for(copy: Path) -> None:
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(LorgnetteError, match=r"this model is not supported: its weights are quantized \(gptq\)"):
        BaseCheckpoint.from_folder(copy, needs_weights=False)


@pytest.mark.parametrize("has_double_quantization", [True, False])
def test_a_checkpoint_in_nf4(tiny: Path, tmp_path: Path, has_double_quantization: bool) -> None:
    folder = tmp_path / "nf4"
    write_nf4_checkpoint(folder, tiny, has_double_quantization=has_double_quantization)
    plain, nf4 = BaseCheckpoint.from_folder(tiny), BaseCheckpoint.from_folder(folder)
    assert nf4.quantization == Quantization(is_stored=True, has_double_quantization=has_double_quantization)
    assert nf4.quantize("nf4") == nf4.quantize(None) == nf4
    assert plain.quantization is None
    assert plain.quantize("nf4").quantization == QLORA
    assert sorted(nf4.list_weights()) == sorted(plain.list_weights())
    assert plain.list_quantized_modules() == []
    projections = plain.quantize("nf4").list_quantized_modules()
    assert len(projections) == 7 * plain.load_text_config().num_layers
    assert set(nf4.list_quantized_modules()) == {*projections, "model.visual.blocks.0.attn.qkv"}


def test_a_model_without_sizes_is_not_transformers_largest(copy: Path) -> None:
    """Its defaults are those of 72 billion weights."""
    (copy / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    assert load_broken(copy).message.startswith("config.json describes a model of ")


def test_a_weight_index_names_files_of_its_folder_only(copy: Path) -> None:
    split_into_shards(copy)
    for name in ("../x.safetensors", "/etc/passwd", "a/../b", "..", ""):
        (copy / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        assert load_broken(copy).message == "weight index has no weight_map of file names"


def test_a_config_in_nf4_beside_weights_that_are_not_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    (copy / "config.json").write_text(json.dumps(config))
    assert "config.json says that they are in NF4 (quantization_config), and none is" in load_broken(copy).message
    assert BaseCheckpoint.from_folder(copy, needs_weights=False).quantization == Quantization(True, False)
