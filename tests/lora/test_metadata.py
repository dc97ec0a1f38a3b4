"""Metadata is written and read back, and another base model than the recorded one is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.lora.metadata import METADATA_FILE, AdapterMetadata
from lorgnette.lora.peft_config import CONFIG_FILE
from lorgnette.models.base_checkpoint import BaseCheckpoint


def test_metadata_reads_back_as_written(adapter_metadata: AdapterMetadata, tmp_path: Path) -> None:
    adapter_metadata.write(tmp_path)
    assert AdapterMetadata.load(tmp_path) == adapter_metadata
    assert json.loads((tmp_path / METADATA_FILE).read_text())["format"] == 1


def test_a_folder_without_metadata_is_no_adapter(adapter_metadata: AdapterMetadata, tmp_path: Path) -> None:
    adapter_metadata.write(tmp_path)
    (tmp_path / "odd" / METADATA_FILE).mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / CONFIG_FILE).touch()
    for folder, message in (
        (tmp_path / "none", "no such adapter"),
        (tmp_path / METADATA_FILE, "a file, not a folder"),
        (tmp_path / "odd", "lorgnette.json is missing"),
        (tmp_path / "bare", "lorgnette.json is missing"),
    ):
        with pytest.raises(LorgnetteError) as caught:
            AdapterMetadata.load(folder)
        assert (caught.value.message, caught.value.where) == (message, str(folder))
        assert caught.value.hint


def test_an_adapter_of_peft_gets_the_tutorials_settings(tiny: Path, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    config["base_model_name_or_path"] = "./Qwen/Qwen2-VL-2B-Instruct"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    metadata = AdapterMetadata.load_or_infer(tmp_path)
    assert not metadata.is_ours
    assert metadata.model == "./Qwen/Qwen2-VL-2B-Instruct"
    assert metadata.processor.image_size == (280, 280)
    metadata.check_base_model(BaseCheckpoint.from_folder(tiny), "any template")  # nothing is recorded to compare with
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(LorgnetteError, match=r"adapter_config\.json cannot be read"):
        AdapterMetadata.load_or_infer(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": None}, "lorgnette.json does not fit: prompt: "),
        ({"processor": {"image_size": "wide"}}, "lorgnette.json does not fit: processor.image_size."),
        ({"format": 2}, "lorgnette.json does not fit: format: "),
        ({"invented": 1}, "lorgnette.json does not fit: invented: "),
        ({"prompt": "What is \ud800?"}, "lorgnette.json does not fit: prompt: "),
    ],
)
def test_an_invalid_field_is_named(
    adapter_metadata: AdapterMetadata, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    (tmp_path / METADATA_FILE).write_text(json.dumps(adapter_metadata.model_dump(mode="json") | changed))
    with pytest.raises(LorgnetteError) as caught:
        AdapterMetadata.load(tmp_path)
    assert caught.value.message.startswith(message)
    assert caught.value.where == str(tmp_path / METADATA_FILE)
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / METADATA_FILE).write_bytes(content)
    with pytest.raises(LorgnetteError, match=r"lorgnette\.json (cannot be read|does not fit): .") as caught:
        AdapterMetadata.load(tmp_path)
    assert caught.value.where == str(tmp_path / METADATA_FILE)
    assert caught.value.hint


def test_the_recorded_base_model_is_accepted_from_any_folder(
    adapter_metadata: AdapterMetadata, tiny: Path, tmp_path: Path
) -> None:
    adapter_metadata.check_base_model(BaseCheckpoint.from_folder(tiny), "template")
    adapter_metadata.check_base_model(BaseCheckpoint.from_folder(shutil.copytree(tiny, tmp_path / "moved")), "template")


@pytest.mark.parametrize(
    ("changed", "template", "message"),
    [
        ({"family": "qwen9_vl"}, "template", "base model is a qwen2_vl, the adapter's a qwen9_vl"),
        ({"fingerprint": "0" * 64}, "template", "base model has other weights"),
        ({}, "another template", "base model has another chat template"),
    ],
)
def test_another_base_model_is_refused_and_the_right_one_named(
    adapter_metadata: AdapterMetadata, tiny: Path, changed: dict[str, Any], template: str, message: str
) -> None:
    with pytest.raises(LorgnetteError) as caught:
        adapter_metadata.model_copy(update={"model": "the/right-one", **changed}).check_base_model(
            BaseCheckpoint.from_folder(tiny), template
        )
    assert caught.value.message.startswith(message)
    assert caught.value.where == str(tiny)
    assert "the/right-one" in str(caught.value.hint)
