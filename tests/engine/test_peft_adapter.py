"""An adapter starts without a voice, comes back as it was saved, and is refused by name where it does not fit.

(That PEFT reads ours and we PEFT's: parity/test_adapter.py.)
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.config import LoraSettings
from lorgnette.engine import peft_adapter
from lorgnette.engine.peft_adapter import get_adapter_state
from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_folder
from lorgnette.lora import peft_files
from lorgnette.lora.metadata import METADATA_FILE, AdapterMetadata
from lorgnette.lora.peft_files import CONFIG_FILE, WEIGHTS_FILE
from lorgnette.models.qwen2_vl.family import FAMILIES

FAMILY = FAMILIES["qwen2_vl"]


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copied")


def refused(loaded: Callable[[], Any], folder: Path) -> LorgnetteError:
    with pytest.raises(LorgnetteError) as caught:
        peft_adapter.load_adapter(loaded(), folder)
    assert str(folder) in str(caught.value.where)
    assert caught.value.hint
    return caught.value


def trained(model: Any) -> set[str]:
    return {name.replace(".default.", ".") for name, p in model.named_parameters() if p.requires_grad}


def test_a_fresh_adapter_is_its_seeds_and_says_nothing(loaded: Callable[[], Any]) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (
        get_adapter_state(peft_adapter.add_adapter(loaded(), FAMILY, LoraSettings(rank=4), seed)) for seed in (3, 3, 4)
    )
    torch.testing.assert_close(torch.random.get_rng_state(), before)
    assert len(one) == 2 * 7 * 2
    for name, tensor in one.items():
        assert tensor.requires_grad
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, same[name])
        if "lora_B" in name:
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])


def test_only_the_adapter_is_trained(loaded: Callable[[], Any]) -> None:
    model = peft_adapter.add_adapter(loaded().to(torch.bfloat16), FAMILY, LoraSettings(rank=4), seed=0)
    state = get_adapter_state(model)
    assert trained(model) == set(state)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_the_settings_are_pefts(loaded: Callable[[], Any]) -> None:
    lora = LoraSettings(rank=3, alpha=7, dropout=0.25, use_rslora=True, target_modules=("v_proj",), parts=("language",))
    config = peft_adapter.add_adapter(loaded(), FAMILY, lora, seed=0).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (3, 7, 0.25, True)
    assert config.target_modules == FAMILY.build_target_pattern(("v_proj",), ("language",))


def test_what_is_saved_comes_back(
    saved: Path, tuned: Any, loaded: Callable[[], Any], contract: AdapterMetadata
) -> None:
    assert {path.name for path in saved.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE, METADATA_FILE}
    back = peft_adapter.load_adapter(loaded(), saved)
    ours = get_adapter_state(tuned)
    assert get_adapter_state(back).keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in get_adapter_state(back).items())
    assert not any(p.requires_grad for p in back.parameters())
    again = peft_adapter.load_adapter(loaded(), saved, is_trainable=True)
    assert trained(again) == set(ours)
    assert json.loads((saved / CONFIG_FILE).read_text())["base_model_name_or_path"] == contract.model


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_a_folder_that_lacks_a_file_is_no_adapter(copied: Path, loaded: Callable[[], Any], name: str) -> None:
    (copied / name).unlink()
    assert refused(loaded, copied).message == f"no adapter here: {name} is missing"


def test_tensors_that_do_not_match_are_counted_and_named(copied: Path, loaded: Callable[[], Any]) -> None:
    tensors = load_file(copied / WEIGHTS_FILE)
    half = {name: tensor for name, tensor in tensors.items() if "lora_A" in name}
    save_file(half, copied / WEIGHTS_FILE)
    error = refused(loaded, copied)
    assert error.message.startswith("14 of 28 adapter tensors match the model; these do not: ")
    assert "layers.0.mlp.down_proj.lora_B.weight" in error.message
    save_file(tensors | {"base_model.model.elsewhere.lora_A.weight": torch.zeros(4, 4)}, copied / WEIGHTS_FILE)
    assert refused(loaded, copied).message.endswith("these do not: base_model.model.elsewhere.lora_A.weight")


def test_another_rank_is_refused_with_the_tensors_name(copied: Path, loaded: Callable[[], Any]) -> None:
    settings = json.loads((copied / CONFIG_FILE).read_text())
    (copied / CONFIG_FILE).write_text(json.dumps(settings | {"r": 8}))
    error = refused(loaded, copied)
    assert error.message.startswith("adapter does not fit the model: size mismatch for ")
    assert "q_proj.lora_A" in error.message


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_a_broken_weight_file_is_named(copied: Path, loaded: Callable[[], Any], content: bytes | None) -> None:
    whole = (copied / WEIGHTS_FILE).read_bytes()
    (copied / WEIGHTS_FILE).write_bytes(whole[:-100] if content is None else content)
    error = refused(loaded, copied)
    assert error.message.startswith("adapter cannot be read: ")
    assert error.where == str(copied / WEIGHTS_FILE)


@pytest.mark.parametrize(
    "changed",
    [
        "", "{", "[]", "{}", {"peft_type": "NONE"}, {"r": 0}, {"r": "four"}, {"target_modules": "nothing"},
        {"target_modules": "("},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_does_not_fit_is_named(copied: Path, loaded: Callable[[], Any], changed: Any) -> None:
    whole = json.loads((copied / CONFIG_FILE).read_text())
    (copied / CONFIG_FILE).write_text(changed if isinstance(changed, str) else json.dumps(whole | changed))
    assert refused(loaded, copied).message.startswith(f"{CONFIG_FILE} does not fit: ")


def test_a_full_disk_leaves_the_old_adapter(
    copied: Path, tuned: Any, contract: AdapterMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors has an error of its own for it."""
    from safetensors import SafetensorError

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    before = (copied / WEIGHTS_FILE).read_bytes()
    monkeypatch.setattr(peft_files, "save_file", full)
    with pytest.raises(LorgnetteError, match=r"cannot write: .*No space left"), atomic_folder(copied) as beside:
        peft_files.write_adapter(beside, get_adapter_state(tuned), FAMILY, LoraSettings(), contract)
    assert (copied / WEIGHTS_FILE).read_bytes() == before


def test_names_from_before_transformers_4_52_are_todays(saved: Path, copied: Path, loaded: Callable[[], Any]) -> None:
    """The tutorial's own checkpoint-62 has them: the decoder stood at `model.layers` then."""
    tensors = load_file(copied / WEIGHTS_FILE)
    old = {name.replace("model.language_model.layers.", "model.layers."): tensor for name, tensor in tensors.items()}
    assert not any("language_model" in name for name in old)
    save_file(old, copied / WEIGHTS_FILE)
    settings = json.loads((copied / CONFIG_FILE).read_text())
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    (copied / CONFIG_FILE).write_text(json.dumps(settings | {"target_modules": names}))
    one, other = (get_adapter_state(peft_adapter.load_adapter(loaded(), folder)) for folder in (saved, copied))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
