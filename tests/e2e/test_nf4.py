"""NF4 weights from the first command to the merged checkpoint: by the setting, and as a checkpoint stores them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import write_nf4_checkpoint

from lorgnette.commands.train import train
from lorgnette.config import Settings
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models import quantization
from lorgnette.models.family import restore_weight_name

pytestmark = pytest.mark.usefixtures("forked_peft_worker")


@pytest.fixture(params=["setting", "stored"])
def nf4_model(request: pytest.FixtureRequest, tiny: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """(folder, settings): a model that is quantized while it is loaded, or an NF4 file whose card names its base."""
    if request.param == "setting":
        return shutil.copytree(tiny, tmp_path / "model"), ["quantization=nf4"]
    folder = write_nf4_checkpoint(tmp_path / "snapshots" / "model", tiny)  # a hub's cache, of the revision `model`
    (folder / "README.md").write_text(f"---\nbase_model: {tiny}\nlicense: apache-2.0\n---\n")
    return folder, []


def test_from_check_to_the_merged_checkpoint(
    nf4_model: tuple[Path, list[str]], cli: Callable[..., Any], captions: Path, tiny: Path, tmp_path: Path
) -> None:
    folder, words = nf4_model
    words += [
        f"model={folder}", f"data={captions}", "image_size=28", "lora.rank=2", "data.holdout=2", "report_to=none",
        "predict.max_new_tokens=2", "device=cpu", "train.max_steps=2", "train.batch_size=2", "train.learning_rate=1e-2",
    ]  # fmt: skip
    assert cli("preview", *words).status == 0
    trained = cli("train", *words, "run=run")
    assert trained.status == 0, trained.err
    assert "note       the decoder's projections are NF4 weights" in trained.out + trained.err
    assert f"{folder.name} in NF4 without an adapter" in (tmp_path / "run" / "report.html").read_text()
    adapter = tmp_path / "run" / "adapter"
    metadata = AdapterMetadata.load(adapter)
    assert (metadata.quantization, metadata.model) == ("nf4", str(folder))
    assert metadata.revision == (None if "quantization=nf4" in words else "model")
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)

    # Answers, on the same weights.
    result = cli("evaluate", "run", captions, "--rows", "2")
    assert result.status == 0, result.err
    assert f"{folder} in NF4" in result.err + result.out

    # Plain transformers, PEFT and bitsandbytes compute the loss of the training.
    verified = cli("verify", "run", "--rows", "1")
    assert verified.status == 0, verified.out
    now, saved = (verified.out.partition("reference sample: ")[2].split()[i] for i in (0, 4))
    assert float(now) == pytest.approx(float(saved), abs=2e-4)
    assert "merged     not into NF4 weights" in verified.out
    assert ("BitsAndBytesConfig(load_in_4bit=True" in verified.out) == ("quantization=nf4" in words)
    assert ("merge it first (lorgnette merge): its base model has NF4" in verified.out) != ("quantization=nf4" in words)

    # The merged checkpoint has the weights before NF4.
    merged = cli("merge", "run", "merged")
    assert merged.status == 0, merged.err
    assert "without quantization; the adapter was trained on its NF4 weights" in merged.out
    assert "sample     loss of the reference sample: " in merged.out
    base, out = load_file(tiny / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert out.keys() == base.keys()
    assert all(out[name].dtype == base[name].dtype for name in base)
    factors, changed = load_file(adapter / "adapter_model.safetensors"), set()
    for module in {name.partition(".lora_")[0] for name in factors}:
        a, b = (factors[f"{module}.lora_{side}.weight"] for side in "AB")
        name = restore_weight_name(f"{module.removeprefix('base_model.model.')}.weight")
        torch.testing.assert_close(out[name], (base[name].float() + 16 * b @ a).to(base[name].dtype))
        changed.add(name)
    assert all(torch.equal(out[name], base[name]) for name in base.keys() - changed)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "| trained on | its weights in NF4 (QLoRA); these are not quantized |" in card
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    merged_metadata = AdapterMetadata.load(tmp_path / "merged")
    assert (merged_metadata.quantization, merged_metadata.revision) == (None, None)
    assert "revision" not in card
    assert cli("predict", "1.png", "--model", "merged").status == 0


def test_an_adapter_of_nf4_is_continued_on_nf4(
    make_settings: Callable[..., Settings], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    first = train(make_settings("quantization=nf4", "train.max_steps=1"))
    words = [f"data={tmp_path / 'captions.csv'}", "data.holdout=2", "train.max_steps=1", "train.batch_size=2"]
    words += ["report_to=none", f"adapter={first.path}"]
    result = cli("train", *words, "run=second")
    assert result.status == 0, result.err
    assert "quantization=nf4" in result.err + result.out
    assert AdapterMetadata.load(tmp_path / "second" / "adapter").quantization == "nf4"
    changed = cli("train", *words, "run=third", "quantization=null")
    warning = "quantization is null, the adapter was trained with nf4: its training goes on beside other frozen weights"
    assert warning in changed.err
    assert AdapterMetadata.load(tmp_path / "third" / "adapter").quantization is None
    refused = cli("merge", "third", "merged", "--base", "demo")
    refused.assert_refused(2, "the adapter was not trained on NF4 weights")


def test_what_cannot_be_done_is_refused_before_data_is_read(
    cli: Callable[..., Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    for command in ("train", "check", "plan"):
        result = cli(command, "missing.csv", f"model={tiny}", "quantization=nf4", "device=cpu")
        result.assert_refused(2, "the reference engine needs bitsandbytes", "pip install bitsandbytes")
