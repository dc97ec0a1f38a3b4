"""`merge` overwrites nothing, and writes a checkpoint that every program can load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from lorgnette.commands.compare_candidates import resolve_candidates
from lorgnette.commands.merge import merge
from lorgnette.commands.train import train
from lorgnette.commands.verify import verify
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelSpec
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.report.console import Terminal
from lorgnette.verification.peft_check import AnswerComparison, Distance, PeftResult
from lorgnette.verification.reference_sample import ReferenceSample

pytestmark = pytest.mark.usefixtures("forked_peft_worker")


@pytest.fixture
def replace_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """replace_worker(loss=0.5): no process starts; rounding costs half of the adapter's effect."""

    def replace(loss: float = 0.0, **changed: Any) -> None:
        error, effect = (
            Distance(num_tokens=4, kl=share, total_variation=share, num_argmax_changes=0, max_logprob_difference=0)
            for share in (loss * 0.4, 0.4)
        )
        answer = AnswerComparison(
            base="a", adapter="b", merged="b" if loss < 0.5 else "a", adapter_effect=effect, merge_error=error
        )
        result = {"saved_names": ("a",), "expected_names": ("a",), "has_same_inputs": True, "answers": (answer,)}

        def check_with_peft(_base: object, adapter: Path, *_: object, **__: object) -> PeftResult:
            sample = ReferenceSample.load(adapter)
            assert sample is not None
            return PeftResult(**{"sample_loss": sample.loss} | result | changed)

        monkeypatch.setattr("lorgnette.commands.merge.check_with_peft", check_with_peft)

    return replace


def split_into_shards(checkpoint: Path, out: Path) -> Path:
    """Copy the checkpoint with its weights in two files and an index, as on hubs."""
    shutil.copytree(checkpoint, out)
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(shards.values()):
        save_file({name: t for name, t in tensors.items() if shards[name] == file}, out / file, {"format": "pt"})
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return out


def test_merged_folder_is_a_checkpoint(
    make_settings: Callable[..., Settings], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real worker. The base has two shards; the adapter's names are from before transformers 4.52."""
    base = split_into_shards(tiny, tmp_path / "base")
    run = train(make_settings("train.learning_rate=1e-2", f"model={base}"))
    tensors = {name.replace(".language_model.", "."): t for name, t in load_file(run.adapter / WEIGHTS_FILE).items()}
    save_file(tensors, run.adapter / WEIGHTS_FILE)
    out = merge(run.path, tmp_path / "merged")
    assert {path.name for path in out.iterdir()} == {
        "README.md", "lorgnette.json", *(path.name for path in base.iterdir())
    }  # fmt: skip
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            assert (out / path.name).read_bytes() == path.read_bytes()
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()  # tied
    changed = {
        name
        for shard in base.glob("*.safetensors")
        for name, tensor in load_file(shard).items()
        if not torch.equal(tensor, load_file(out / shard.name)[name])
    }
    assert changed
    assert all(name.startswith("model.layers.") and name.endswith("_proj.weight") for name in changed)
    printed = capsys.readouterr().out
    for line in (f"merged     {out}", "rounding   to bfloat16 keeps 1", "% of its effect on the answers", "after:"):
        assert line in printed
    assert f"vllm serve {out.resolve()}" in printed
    spec = ModelSpec.from_names(str(out), None, Terminal())
    assert spec.checkpoint.family.model_type == "qwen2_vl"
    assert spec.processor.image_processor.size == (28, 28)  # the image size of the adapter's training
    with pytest.raises(UsageError, match="the output folder exists"):
        merge(run.adapter, out)


def test_cost_of_rounding(
    make_settings: Callable[..., Settings],
    tmp_path: Path,
    replace_worker: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = train(make_settings("train.learning_rate=1e-2")).adapter
    replace_worker(loss=0.6)
    merge(adapter, tmp_path / "one")
    printed = capsys.readouterr().out
    assert "and changes 60.0% of its effect on the answers" in printed
    assert "--dtype float32 writes a checkpoint without this loss" in printed
    assert "merged: a" in printed
    replace_worker(saved_names=("b",))
    with pytest.raises(LorgnetteError, match="two is written but not compared: 0 of 1 adapter tensors match the model"):
        merge(adapter, tmp_path / "two")

    def fail(*_: object, **__: object) -> None:
        raise LorgnetteError("the process failed", where="an adapter", hint="try again")

    with monkeypatch.context() as patch:
        patch.setattr("lorgnette.commands.merge.check_with_peft", fail)
        with pytest.raises(LorgnetteError, match="zero is written but not compared: the process failed · an adapter"):
            merge(adapter, tmp_path / "zero")
    assert (tmp_path / "zero" / "config.json").is_file()
    replace_worker(has_same_inputs=False)
    with pytest.raises(LorgnetteError, match=r"gives other model inputs than its base model · .*three"):
        merge(adapter, tmp_path / "three")
    replace_worker(missing_weights=("a",))
    with pytest.raises(LorgnetteError, match=r"the merged folder lacks weights · .*four"):
        merge(adapter, tmp_path / "four")
    replace_worker(sample_loss=0.0)
    with pytest.raises(LorgnetteError, match=r"not the one that was trained: .* and merge again"):
        merge(adapter, tmp_path / "five")


def test_an_adapter_that_rounding_removes_is_refused(
    make_settings: Callable[..., Settings],
    tmp_path: Path,
    replace_worker: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two steps at 1e-6 are less than bfloat16 can add to most weights. float32 keeps them; --force takes the loss."""
    adapter, out = train(make_settings("train.learning_rate=1e-6")).adapter, tmp_path / "merged"
    with pytest.raises(
        LorgnetteError, match=r"rounding to bfloat16 keeps only \d+% of .* --dtype float32; or .*--force"
    ):
        merge(adapter, out)
    assert not out.exists()
    replace_worker()
    capsys.readouterr()
    merge(adapter, out, dtype="float32")
    printed = "".join(capsys.readouterr())
    assert "rounding   to float32 keeps 100% of what the adapter changes in the weights" in printed
    assert f"vllm serve {out.resolve()} --dtype float32" in printed
    merge(adapter, tmp_path / "forced", force=True)
    assert "rounding   to bfloat16 keeps " in capsys.readouterr().out


def test_broken_adapter_is_not_merged(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    path = train(make_settings()).adapter / WEIGHTS_FILE
    (path.parent / "lorgnette.json").rename(path.parent / "moved")
    with pytest.raises(LorgnetteError, match=r"lorgnette.json is missing.*copy the adapter's folder again"):
        merge(path.parent, tmp_path / "merged")
    (path.parent / "moved").rename(path.parent / "lorgnette.json")
    save_file({name: tensor / 0 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(LorgnetteError, match=r"tensors have NaN or Inf.*copy the adapter's folder again"):
        merge(path.parent, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore")  # PEFT's
def test_what_peft_made_is_verified_answered_and_merged(
    load_tiny_model: Callable[[], Any], tiny: Path, image_files: list[Path], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """DoRA with trained biases: beyond what lorgnette trains. Loading it changes the base model's biases, so the base
    answers come from a model loaded without it."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True, bias="all", init_lora_weights=False)
    model = get_peft_model(load_tiny_model(), lora)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_(0, 0.5)
    model.save_pretrained(tmp_path / "adapter")
    image, options = image_files[0], ("--max-new-tokens", 8, "--model", tiny)
    base = json.loads(cli("predict", image, *options).out.split("\t")[1])
    report = verify(tmp_path / "adapter", model=str(tiny), data=image)
    assert report.passed
    assert all(result.passed is not False for result in report.results)
    assert {result.check: result.passed for result in report.results}["merged"] is True
    assert dict(report.usage)["vLLM"].startswith("merge it first (lorgnette merge): its adapter_config.json sets bias")
    answer = json.loads(cli("predict", image, "--adapter", "adapter", *options).out.split("\t")[1])
    assert answer != base
    [compared] = report.answers
    assert compared.base.startswith(base[:4])
    assert compared.adapter.startswith(answer[:4])
    cli("predict", image, "--both", "--adapter", "adapter", *options).assert_refused(2, "changes the base model's own")
    [candidate, _] = resolve_candidates(["base", str(tmp_path / "adapter")], str(tiny), Terminal())
    assert candidate.weights_from is None  # `compare` loads the base model by itself
    merge(tmp_path / "adapter", tmp_path / "merged", model=str(tiny))
    merged = cli("predict", image, "--max-new-tokens", 8, "--model", "merged")
    assert json.loads(merged.out.split("\t")[1]) == answer


def test_the_reported_adapter_of_dora(shared: Callable[[str], Path], cli: Callable[..., Any]) -> None:
    folder = shared("bugs/dora-adapter")
    predict = ("predict", folder / "p" / "0.png", "--adapter", folder / "adapter")
    for words in (predict, ("merge", folder / "adapter", "merged")):
        result = cli(*words, "--model", "demo")
        assert result.status == 0, result.err
