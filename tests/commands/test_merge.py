"""`merge` refuses to write over anything, and its folder is a model like any other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from lorgnette.commands.merge import merge
from lorgnette.commands.train import train
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelSpec
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.report.console import Terminal
from lorgnette.verification.peft_check import AnswerComparison, Distance, NameMatch, PeftResult, SampleResult


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """found(lost=0.5) → the other process is not started; half of what the adapter moves is lost in rounding."""

    def answer(lost: float = 0.0, **changed: Any) -> None:
        near, far = (
            Distance(num_tokens=4, kl=share, total_variation=share, num_argmax_changes=0, max_logprob_difference=0)
            for share in (lost * 0.4, 0.4)
        )
        sample = AnswerComparison(
            base="a", adapter="b", merged="b" if lost < 0.5 else "a", adapter_effect=far, merge_error=near
        )
        given = {
            "names": NameMatch(num_matched=28, missing=(), unexpected=()),
            "same_inputs": True,
            "samples": (sample,),
        }
        monkeypatch.setattr(
            "lorgnette.verification.peft_check.check_with_peft", lambda *_, **__: PeftResult(**given | changed)
        )

    return answer


def in_shards(checkpoint: Path, out: Path) -> Path:
    """The checkpoint with its weights in two files and an index, as hubs have them."""
    shutil.copytree(checkpoint, out)
    tensors = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    place = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(place.values()):
        save_file({name: t for name, t in tensors.items() if place[name] == file}, out / file, {"format": "pt"})
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return out


def test_an_adapter_becomes_a_model(
    chosen: Callable[..., Settings], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real other process, which finds the folder to be a model of its own. The base is laid out as on a hub,
    in two shards, and the adapter has the names of before transformers 4.52, which that process does not know."""
    base = in_shards(tiny, tmp_path / "base")
    folder = train(chosen("train.learning_rate=1e-2", f"model={base}"))
    weights = {name.replace(".language_model.", "."): t for name, t in load_file(folder.adapter / WEIGHTS_FILE).items()}
    save_file(weights, folder.adapter / WEIGHTS_FILE)
    out = merge(folder.path, tmp_path / "merged")
    assert {path.name for path in out.iterdir()} == {*(path.name for path in base.iterdir()), "lorgnette.json"}
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
    said = capsys.readouterr().err
    for line in (
        f"merged     {out}",
        "adapter    moves the base by KL ",
        "rounding   to BF16 moves it by KL ",
        "after:",
    ):
        assert line in said
    assert f"vllm serve {out.resolve()}" in said
    asked = ModelSpec.from_names(str(out), None, Terminal())
    assert asked.checkpoint.family.model_type == "qwen2_vl"
    assert asked.processor.image_processor.size == (28, 28)  # a merged model is asked as its adapter was trained
    with pytest.raises(UsageError, match="something is there already"):
        merge(folder.adapter, out)


def test_what_rounding_costs(
    chosen: Callable[..., Settings], tmp_path: Path, found: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(chosen())
    found(lost=0.6)
    merge(folder.adapter, tmp_path / "one")
    said = capsys.readouterr().err
    assert "another first choice at 0 of 4: 60.0% of that" in said
    assert "merged: a" in said
    found(names=NameMatch(num_matched=0, missing=("a",), unexpected=("b",)))
    with pytest.raises(LorgnetteError, match="two could not be compared: plain peft does not take the adapter"):
        merge(folder.adapter, tmp_path / "two")
    found(same_inputs=False)
    with pytest.raises(LorgnetteError, match=r"makes other inputs than its base · .*three"):
        merge(folder.adapter, tmp_path / "three")
    found(lacking=("a",))
    with pytest.raises(LorgnetteError, match=r"the merged folder lacks weights · .*four"):
        merge(folder.adapter, tmp_path / "four")
    found(witness=SampleResult(has_same_tokens=True, loss=0.0))
    with pytest.raises(LorgnetteError, match=r"not the one that was trained: .* and merge again"):
        merge(folder.adapter, tmp_path / "five")


def test_a_broken_adapter_is_not_merged(chosen: Callable[..., Settings], tmp_path: Path) -> None:
    path = train(chosen()).adapter / WEIGHTS_FILE
    (path.parent / "lorgnette.json").rename(path.parent / "elsewhere")
    with pytest.raises(LorgnetteError, match=r"lorgnette.json is missing.*`lorgnette verify` says more"):
        merge(path.parent, tmp_path / "merged")
    (path.parent / "elsewhere").rename(path.parent / "lorgnette.json")
    save_file({name: tensor / 0 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(LorgnetteError, match=r"numbers that are not finite.*`lorgnette verify` says more"):
        merge(path.parent, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
