"""The tutorial's own files work as they are: its CSV and JSON, and an adapter that its script trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lorgnette.report.predictions import read_predictions

pytestmark = pytest.mark.usefixtures("forked_peft_worker")

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves a copy of its folder for the others."""
    return tmp_path_factory.mktemp("own-files") / "trained"


@pytest.fixture
def run(trained: Path, captions: Path, tiny: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training on the tutorial's own data_vl_train.json, tested on its data_vl_test.json."""
    folder = captions.parent
    monkeypatch.chdir(folder)
    if trained.exists():
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        return folder / "run"
    captions.rename("coco-2024-dataset.csv")
    assert cli("prepare", "coco-2024-dataset.csv", "--out", ".", "--split", "tail").status == 0
    result = cli(
        "train", f"model={tiny}", "data=data_vl_train.json", "data.test=data_vl_test.json", "run=run", "lora.rank=4",
        "train.learning_rate=0.01", "train.batch_size=2", "train.max_steps=12", "report_to=none",
        "predict.max_new_tokens=6",
    )  # fmt: skip
    assert result.status == 0, result.err
    shutil.copytree(folder, trained)
    return folder / "run"


@pytest.fixture
def old(run: Path) -> Path:
    """The run's adapter as peft 0.13 and transformers 4.46 wrote it: checkpoint-62."""
    folder = shutil.copytree(run / "adapter", run.parent / "checkpoint-62")
    for name in ("lorgnette.json", "reference_sample.json", "reference_sample.png"):  # what no other tool writes
        (folder / name).unlink()
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name.replace(".language_model.layers.", ".layers."): t for name, t in tensors.items()}, weights)
    settings = json.loads((folder / "adapter_config.json").read_text())
    common = {name: settings[name] for name in ("r", "lora_alpha", "lora_dropout", "bias", "task_type", "peft_type")}
    changed = {"target_modules": PROJECTIONS, "base_model_name_or_path": "./Qwen/Qwen2-VL-2B-Instruct"}
    (folder / "adapter_config.json").write_text(json.dumps({**common, **changed, "inference_mode": True}))
    return folder


def test_its_adapter_predicts_compares_and_merges(run: Path, old: Path, tiny: Path, cli: Callable[..., Any]) -> None:
    ask = ["data_vl_test.json", "--model", tiny, "--max-new-tokens", 6, "--out"]
    for name, adapter in (("ours", run / "adapter"), ("theirs", old)):
        result = cli("predict", *ask, f"{name}.jsonl", "--adapter", adapter, "--both")
        assert result.status == 0, result.err
    assert "has no lorgnette.json" in result.err
    ours, theirs = (read_predictions(Path(f"{name}.jsonl")) for name in ("ours", "theirs"))
    assert ours == theirs
    assert [row.tuned for row in ours] != [row.base for row in ours]
    assert cli("compare", old, "data_vl_test.json", "--model", tiny, "--max-new-tokens", 6).status == 0
    # Rounding to the base's bfloat16 would move answers that are almost equally likely.
    assert cli("merge", old, "merged", "--model", tiny, "--dtype", "float32").status == 0
    assert (
        cli("predict", "data_vl_test.json", "--model", "merged", "--max-new-tokens", 6, "--out", "m.jsonl").status == 0
    )
    assert [row.base for row in read_predictions(Path("m.jsonl"))] == [row.tuned for row in ours]


def test_without_its_base_it_asks_for_it(old: Path, cli: Callable[..., Any]) -> None:
    result = cli("predict", "0.png", "--adapter", old)
    result.assert_refused(1, "base model is missing", "./Qwen/Qwen2-VL-2B-Instruct", "--model")


def test_half_of_its_names_is_an_error_that_lists_them(old: Path, tiny: Path, cli: Callable[..., Any]) -> None:
    weights = old / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if ".mlp." not in name}, weights)
    result = cli("predict", "0.png", "--adapter", old, "--model", tiny)
    result.assert_refused(1, "16 of 28 adapter tensors match", "mlp.down_proj.lora_A")
