"""An NF4 model's base is found by what the model names, and told from other models by its weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_nf4_checkpoint, write_tiny_checkpoint

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.lora import unquantized_base
from lorgnette.lora.unquantized_base import find_unquantized_base, measure_distance
from lorgnette.models.base_checkpoint import BaseCheckpoint


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
        ({"path": "Hub/Other"}, LorgnetteError, "Hub/Other: its weights are not those that were quantized (14"),
        ({"path": "Hub/Base", "given": "Hub/Other"}, UsageError, "Hub/Other: its weights are not those"),
    ],
)
def test_without_its_base_it_says_why(
    find: Callable[..., Any], facts: dict[str, str], error: type[LorgnetteError], reason: str
) -> None:
    with pytest.raises(error) as caught:
        find(**facts)
    assert reason in caught.value.message
    assert "--base MODEL" in str(caught.value.hint)


def test_a_model_of_another_shape_is_no_base(stored: Path, tiny_family: Callable[[str], Path]) -> None:
    with pytest.raises(LorgnetteError):
        measure_distance(BaseCheckpoint.from_folder(stored), BaseCheckpoint.from_folder(tiny_family("qwen3_vl")))
