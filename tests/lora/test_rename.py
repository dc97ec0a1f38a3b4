"""An adapter renamed for transformers before 4.52 loads there: names, options and logits."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from lorgnette.engine.peft_engine import load_adapter
from lorgnette.errors import LorgnetteError
from lorgnette.lora.peft_config import CONFIG_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE, SavedAdapter
from lorgnette.lora.rename import OLD_OPTIONS, write_renamed


class OldTree(torch.nn.Module):
    """The module tree of Qwen2-VL before transformers 4.52 around the modules of today: `model.layers`, `visual`."""

    def __init__(self, current: Any) -> None:
        super().__init__()
        self.visual, self.model, self.lm_head = current.model.visual, current.model.language_model, current.lm_head
        self.config = current.config
        self.generation_config = SimpleNamespace()

    def prepare_inputs_for_generation(self) -> None: ...

    def get_input_embeddings(self) -> torch.nn.Module:
        embedding: torch.nn.Module = self.model.embed_tokens
        return embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden = self.model(input_ids=input_ids).last_hidden_state
        return SimpleNamespace(logits=self.lm_head(hidden))


def compute_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(40)[None]).logits
    return logits


def rename(adapter: Path, folder: Path, *, use_old_names: bool = True) -> Path:
    folder.mkdir()
    write_renamed(SavedAdapter.load(adapter), folder, use_old_names=use_old_names)
    return folder


@pytest.mark.filterwarnings("ignore")  # PEFT's
@pytest.mark.parametrize(
    "options",
    [
        None,
        {
            "target_modules": r".*language_model.*\.(q|up)_proj|.*\.qkv", "exclude_modules": r".*\.0\.mlp\..*",
            "rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 3}, "use_dora": True, "bias": "all",
            "modules_to_save": ["lm_head"],
        },
    ],
    ids=["ours", "theirs"],
)  # fmt: skip
def test_the_old_tree_gives_the_same_logits(
    options: dict[str, Any] | None, saved: Path, load_tiny_model: Callable[[], Any], tmp_path: Path
) -> None:
    base = load_tiny_model()
    adapter = saved
    if options is not None:
        torch.manual_seed(0)
        adapter = tmp_path / "theirs"
        lora = LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
        model = get_peft_model(deepcopy(base), lora)
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or (name.endswith(".bias") and "bias" in options):
                parameter.data += 0.1
        model.save_pretrained(adapter, save_embedding_layers=False)
    old = rename(adapter, tmp_path / "old")
    expected = compute_logits(load_adapter(deepcopy(base), adapter))
    tree = PeftModel.from_pretrained(OldTree(deepcopy(base)), old).eval()
    assert torch.equal(compute_logits(tree), expected)
    assert (expected - compute_logits(base)).abs().max() > 1e-3  # negative control: the adapter changes the logits
    # lorgnette reads it as before, and gives current names back.
    assert SavedAdapter.load(old).has_old_names
    assert torch.equal(compute_logits(load_adapter(deepcopy(base), old)), expected)
    current = rename(old, tmp_path / "current", use_old_names=False)
    assert torch.equal(compute_logits(PeftModel.from_pretrained(deepcopy(base), current).eval()), expected)
    assert load_file(current / WEIGHTS_FILE).keys() == load_file(adapter / WEIGHTS_FILE).keys()


def test_without_renaming_the_old_tree_refuses_our_adapter(saved: Path, load_tiny_model: Callable[[], Any]) -> None:
    """Negative control, and the reason for it all."""
    with pytest.raises(ValueError, match="not found in the base model"):
        PeftModel.from_pretrained(OldTree(load_tiny_model()), saved)


def test_only_options_of_that_time_are_written(saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    config = json.loads((copy / CONFIG_FILE).read_text())
    new_defaults = {"qalora_group_size": 16, "peft_version": "0.21.2", "lora_bias": False, "eva_config": None}
    (copy / CONFIG_FILE).write_text(json.dumps(config | new_defaults))
    old = json.loads((rename(copy, tmp_path / "old") / CONFIG_FILE).read_text())
    assert old.keys() <= OLD_OPTIONS
    assert len(old["target_modules"]) == 14
    assert "model.layers.0.mlp.down_proj" in old["target_modules"]
    assert old["base_model_name_or_path"] == config["base_model_name_or_path"]
    (copy / CONFIG_FILE).write_text(json.dumps(config | {"lora_bias": True}))
    with pytest.raises(LorgnetteError, match=r"sets lora_bias, which PEFT before .* lorgnette merge"):
        rename(copy, tmp_path / "refused")
