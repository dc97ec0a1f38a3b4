"""An NF4 model's base is found by what the model names, and told from other models by its weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_nf4_checkpoint, write_tiny_checkpoint

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.lora import unquantized_base
from lorgnette.lora.unquantized_base import compare_weights, find_unquantized_base
from lorgnette.models.base_checkpoint import BaseCheckpoint

NOISE = {"Hub/FineTune": (0.02, "_proj"), "Hub/OneProjection": (0.02, "v_proj"), "Hub/HalfPercent": (0.005, "_proj")}
"""Models that another training moved by this share of the weights' norm, in the projections of this name."""


def add_noise(source: Path, folder: Path, share: float, projection: str) -> Path:
    """A copy of a checkpoint, in float32, with noise of this share of the weights' standard deviation."""
    shutil.copytree(source, folder)
    torch.manual_seed(0)
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    for name, tensor in tensors.items():
        if f"{projection}.weight" in name:
            tensor.add_(share * tensor.std() * torch.randn_like(tensor))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def stored(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nf4_checkpoint(tmp_path_factory.mktemp("nf4") / "model", tiny)


@pytest.fixture
def find(
    stored: Path, tiny: Path, tmp_path: Path, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """find(card=…, path=…, name=…, given=…): of a stored NF4 model with these facts; Hub/Base is the tiny model."""
    other = tmp_path / "other"

    def resolve(name: str, *_: object) -> Path:
        if name == "Hub/Other":
            return other if other.exists() else write_tiny_checkpoint(other, "qwen2_vl", seed=5)
        if name in NOISE:
            return other if other.exists() else add_noise(tiny, other, *NOISE[name])
        folder = {"Hub/Base": tiny, "Hub/Nf4": stored}.get(name)
        if folder is None:
            raise LorgnetteError("no such model", where=name)
        return folder

    monkeypatch.setattr(unquantized_base, "resolve_model", resolve)

    def run(
        card: str | None = None, path: str | None = None, name: str = "some/model", given: str | None = None
    ) -> unquantized_base.UnquantizedBase:
        folder = shutil.copytree(stored, tmp_path / "nf4")
        if card is not None:
            (folder / "README.md").write_text(card)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | ({"_name_or_path": path} if path else {})))
        return find_unquantized_base(BaseCheckpoint.from_folder(folder), name, terminal, given=given)

    return run


def test_a_model_that_is_quantized_while_it_is_loaded_is_its_own_base(tiny: Path, terminal: Any) -> None:
    checkpoint = BaseCheckpoint.from_folder(tiny)
    found = find_unquantized_base(checkpoint.quantize("nf4"), "tiny", terminal)
    assert (found.name, found.checkpoint) == ("tiny", checkpoint)
    assert 0.05 < found.distance < 0.12


@pytest.mark.parametrize(
    "facts",
    [
        {"card": "---\nbase_model: Hub/Base\n---\n"},
        {"card": "---\nbase_model: [Hub/Nf4, Hub/Missing, Hub/Other, Hub/Base]\n---\n"},
        {"card": "---\nbase_model: [\n---\n", "path": "Hub/Base"},
        {"card": "no front matter", "path": "Hub/Base"},
        {"path": "/home/somebody/model", "name": "Hub/Base-bnb-4bit"},
        {"name": "Hub/Base-unsloth-bnb-4bit"},
        {"given": "Hub/Base"},
    ],
)
def test_card_config_and_name_tell_the_base(find: Callable[..., Any], tiny: Path, facts: dict[str, str]) -> None:
    found = find(**facts)
    assert (found.name, found.checkpoint.folder) == ("Hub/Base", tiny)
    assert 0.05 < found.distance < 0.12


@pytest.mark.parametrize(
    ("facts", "error", "reason"),
    [
        ({}, LorgnetteError, "its files and its name tell none"),
        ({"name": "Hub/Gone-bnb-4bit"}, LorgnetteError, "Hub/Gone: no such model"),
        ({"card": "---\nbase_model: Hub/Nf4\n---\n"}, LorgnetteError, "Hub/Nf4: its weights are in NF4 too"),
        ({"path": "Hub/Other"}, LorgnetteError, "Hub/Other: its weights are not those that were quantized (quantized"),
        ({"path": "Hub/FineTune"}, LorgnetteError, "a matrix of them gives 8"),
        ({"path": "Hub/OneProjection"}, LorgnetteError, "a matrix of them gives 8"),
        ({"path": "Hub/HalfPercent"}, LorgnetteError, "a matrix of them gives 9"),
        ({"path": "Hub/Base", "given": "Hub/Other"}, UsageError, "its weights are not those that were quantized ("),
        ({"path": "Hub/Base", "given": "Hub/Nf4"}, UsageError, "its weights are in NF4 too"),
    ],
)
def test_without_its_base_it_says_why(
    find: Callable[..., Any], facts: dict[str, str], error: type[LorgnetteError], reason: str
) -> None:
    with pytest.raises(error) as caught:
        find(**facts)
    assert reason in caught.value.message
    assert "--base MODEL" in str(caught.value.hint)


def test_a_given_base_that_cannot_be_opened_is_the_error(find: Callable[..., Any]) -> None:
    with pytest.raises(LorgnetteError) as caught:
        find(path="Hub/Base", given="Hub/Gone")
    assert str(caught.value) == "no such model · Hub/Gone"


def test_a_model_of_another_shape_is_no_base(stored: Path, tiny_family: Callable[[str], Path]) -> None:
    with pytest.raises(LorgnetteError):
        compare_weights(BaseCheckpoint.from_folder(stored), BaseCheckpoint.from_folder(tiny_family("qwen3_vl")))


@pytest.mark.parametrize("has_double_quantization", [False, True])
def test_weights_that_were_rounded_before_are_the_same(
    tiny: Path, tmp_path: Path, has_double_quantization: bool
) -> None:
    """Of a base in float32 whose NF4 was made of its values in bfloat16."""
    base, rounded = add_noise(tiny, tmp_path / "base", 0.02, "_proj"), shutil.copytree(tiny, tmp_path / "rounded")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, rounded / "model.safetensors", {"format": "pt"})
    nf4 = write_nf4_checkpoint(tmp_path / "nf4", rounded, has_double_quantization=has_double_quantization)
    assert compare_weights(*map(BaseCheckpoint.from_folder, (nf4, base))).equal_share == 1


def test_the_base_of_a_model_that_is_quantized_while_it_is_loaded_has_its_fingerprint(
    tiny: Path, tmp_path: Path, terminal: Any
) -> None:
    """A fine-tune that moved the weights so little that most of their NF4 is the same is refused too."""
    checkpoint = BaseCheckpoint.from_folder(tiny).quantize("nf4")
    assert find_unquantized_base(checkpoint, "tiny", terminal, given=str(tiny)).distance < 0.12
    other = add_noise(tiny, tmp_path / "other", 1e-4, "_proj")
    with pytest.raises(UsageError, match="the adapter's base model has others"):
        find_unquantized_base(checkpoint, "tiny", terminal, given=str(other))
