"""The checkpoint is small, has the hub's layout, and loads in plain transformers."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from demo_model.checkpoint import count_parameters, make_checkpoint, save_weights
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from lorgnette.resolve import BUILT_IN_MODEL

FILES = {
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "vocab.json",
}


def test_the_files_are_the_hubs_and_small(untrained: Path) -> None:
    assert {path.name for path in untrained.iterdir()} == FILES
    assert sum(path.stat().st_size for path in untrained.iterdir()) < 12_000_000


def test_plain_transformers_loads_every_weight(untrained: Path) -> None:
    model, info = AutoModelForImageTextToText.from_pretrained(untrained, dtype="auto", output_loading_info=True)
    assert {name: keys for name, keys in info.items() if keys} == {}
    assert model.dtype == torch.bfloat16
    assert 4_000_000 < count_parameters(model) <= 6_000_000
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.generation_config.do_sample is False


def test_the_config_has_the_hubs_keys(untrained: Path, shared: Callable[[str], Path]) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        ours, real = (json.loads((folder / name).read_text()) for folder in (untrained, shared("qwen2-vl")))
        assert set(ours) | {"transformers_version"} == set(real) | {"transformers_version"}
    ours = json.loads((untrained / "config.json").read_text())
    head = ours["hidden_size"] // ours["num_attention_heads"]
    assert sum(ours["rope_scaling"]["mrope_section"]) == head // 2
    assert ours["vision_config"]["hidden_size"] == ours["hidden_size"]


def test_the_seed_decides_the_weights(untrained: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "again")
    make_checkpoint(tmp_path / "other", seed=1)
    first, again, other = (
        load_file(folder / "model.safetensors") for folder in (untrained, tmp_path / "again", tmp_path / "other")
    )
    assert set(first) == set(other)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_saving_leaves_the_model_in_its_own_precision(untrained: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(untrained, dtype=torch.float32)
    save_weights(model, tmp_path)
    assert model.dtype == torch.float32
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in stored


def test_the_shipped_model_matches_this_code_and_its_manifest(untrained: Path) -> None:
    shipped = BUILT_IN_MODEL
    manifest = json.loads((shipped / "manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256((shipped / "model.safetensors").read_bytes()).hexdigest()
    assert sum(path.stat().st_size for path in shipped.iterdir()) < 12_000_000
    assert manifest["held_out"]["correct"] > 0.95
    for name in FILES - {"model.safetensors"}:
        assert (shipped / name).read_text() == (untrained / name).read_text(), name
    _, info = AutoModelForImageTextToText.from_pretrained(shipped, dtype="auto", output_loading_info=True)
    assert {name: keys for name, keys in info.items() if keys} == {}
