"""An adapter's files are inspected, and every way to break them is found."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.errors import LorgnetteError
from lorgnette.lora.inspect import AdapterReport, inspect_adapter
from lorgnette.lora.peft_config import CONFIG_FILE, PREFIX
from lorgnette.lora.peft_files import WEIGHTS_FILE, SavedAdapter

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def inspect(adapter: Path) -> AdapterReport:
    return inspect_adapter(SavedAdapter.load(adapter))


def rewrite_tensors(adapter: Path, change: Callable[[Tensors], Tensors]) -> Path:
    save_file(change(load_file(adapter / WEIGHTS_FILE)), adapter / WEIGHTS_FILE)
    return adapter


def rewrite_config(adapter: Path, **values: Any) -> Path:
    config = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps(config | values))
    return adapter


@pytest.mark.parametrize(("rank", "is_broken"), [(8, False), (6, True)])
def test_the_rank_of_experts_is_a_multiple(saved: Path, tmp_path: Path, rank: int, is_broken: bool) -> None:
    adapter = rewrite_config(shutil.copytree(saved, tmp_path / "copy"), target_parameters=["mlp.experts.down_proj"])
    name = f"{PREFIX}model.language_model.layers.0.mlp.experts"
    factors = {f"{name}.lora_A.weight": torch.ones(rank, 5), f"{name}.lora_B.weight": torch.ones(5, rank)}
    report = inspect(rewrite_tensors(adapter, lambda tensors: tensors | factors))
    assert report.problems == (
        ("adapter_config.json has rank 4, the tensors have rank 4, 6: files of two adapters",) if is_broken else ()
    )


def test_intact_adapter(saved: Path) -> None:
    report = inspect(saved)
    assert (report.num_zero.total(), report.rank, report.problems) == (0, 4, ())
    assert report.merge_reason is None
    assert report.num_modules == {
        "self_attn.q_proj": 2, "self_attn.k_proj": 2, "self_attn.v_proj": 2, "self_attn.o_proj": 2,
        "mlp.gate_proj": 2, "mlp.up_proj": 2, "mlp.down_proj": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda t: {name: x * 0 if "lora_B" in name else x for name, x in t.items()},
            "B is zero in all 14 modules: the adapter has no effect",
        ),
        (lambda t: {name: x for name, x in t.items() if "lora_A" in name}, "14 of 14 modules have only A or only B"),
        (
            lambda t: {name: x / 0 if "0.mlp.up_proj" in name else x for name, x in t.items()},
            "2 of 28 tensors have NaN",
        ),
        (lambda t: {"odd": torch.zeros(1)}, "no LoRA tensors in the file"),
        (lambda t: {}, "no tensors in the file"),
        (lambda t: {name: x.long() for name, x in t.items()}, "28 of 28 tensors are int64, no weights: "),
        (lambda t: {name: x.flatten() for name, x in t.items()}, "14 of 14 modules have an A or B that is no matrix: "),
        (lambda t: {name: x * 0 if "q_proj" in name else x for name, x in t.items()}, None),
    ],
)
def test_broken_tensors(adapter: Path, change: Any, problem: str | None) -> None:
    problems = inspect(rewrite_tensors(adapter, change)).problems
    assert len(problems) == (problem is not None)
    assert all(text.startswith(problem or "") for text in problems)


def test_modules_with_zero_b_are_counted(adapter: Path) -> None:
    report = inspect(
        rewrite_tensors(adapter, lambda t: {name: x * 0 if "q_proj" in name else x for name, x in t.items()})
    )
    assert +report.num_zero == {"self_attn.q_proj": 2}


@pytest.mark.parametrize("cut", [-1, -10_000, 300, 9, 5])
def test_truncated_file_reports_its_size(adapter: Path, cut: int) -> None:
    path = adapter / WEIGHTS_FILE
    size = path.stat().st_size
    os.truncate(path, size + cut if cut < 0 else cut)
    with pytest.raises(LorgnetteError) as caught:
        inspect(adapter)
    assert caught.value.message.startswith(f"{WEIGHTS_FILE} is ")
    assert str(size + cut if cut < 0 else cut) in caught.value.message
    assert cut >= 0 or str(size) in caught.value.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 4, "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>" * 9, "is not a safetensors file"),
    ],
)
def test_file_of_another_kind(adapter: Path, content: bytes, reason: str) -> None:
    (adapter / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(LorgnetteError, match=f"{WEIGHTS_FILE} {reason}"):
        inspect(adapter)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"r": 8}, f"{CONFIG_FILE} has rank 8, the tensors have rank 4: files of two adapters"),
        ({"r": 8, "rank_pattern": {"q_proj": 4}}, f"{CONFIG_FILE} has rank 8, the tensors have rank 4: files of two"),
        ({"r": 8, "rank_pattern": {".*_proj": 4}}, None),
        ({"r": 2000, "rank_pattern": {".*_proj": 4}}, f"{CONFIG_FILE} has rank 2000, no tensor has: files of two"),
        ({"lora_alpha": 0.5}, None),
    ],
)
def test_config_that_does_not_fit_the_tensors(adapter: Path, changed: dict[str, Any], problem: str | None) -> None:
    problems = inspect(rewrite_config(adapter, **changed)).problems
    assert len(problems) == (problem is not None)
    assert all(text.startswith(problem or "") for text in problems)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(LorgnetteError, match=f"{name} is missing"):
        inspect(adapter)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"use_dora": True}, "its adapter_config.json sets use_dora"),
        ({"bias": "all"}, "its adapter_config.json sets bias"),
        ({"lora_bias": True}, "its adapter_config.json sets lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "its adapter_config.json sets modules_to_save"),
        ({"layers_to_transform": [0]}, "its adapter_config.json sets layers_to_transform"),
        ({"init_lora_weights": "pissa_niter_4"}, "its adapter_config.json sets init_lora_weights"),
        ({"init_lora_weights": "gaussian", "use_rslora": True}, None),
    ],
)
def test_options_beyond_plain_lora_ask_for_a_merge(adapter: Path, changed: dict[str, Any], reason: str | None) -> None:
    assert inspect(rewrite_config(adapter, **changed)).merge_reason == reason


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.model.visual.blocks.0.mlp.up_proj.lora_A.weight",
    ],
)
def test_tensors_beyond_the_decoder_ask_for_a_merge(adapter: Path, name: str) -> None:
    report = inspect(rewrite_tensors(adapter, lambda t: t | {name: torch.ones(4, 2)}))
    assert report.merge_reason is not None
    assert report.merge_reason.startswith("it adapts more than the decoder's linear layers: ")


def test_a_trained_tensor_beside_zero_b_has_an_effect(adapter: Path) -> None:
    """B is zero, but PEFT's DoRA, biases and saved modules change the answers all the same."""
    zero = {name: x * 0 if "lora_B" in name else x for name, x in load_file(adapter / WEIGHTS_FILE).items()}
    bias = "base_model.model.model.language_model.layers.0.self_attn.q_proj.base_layer.bias"
    rewrite_config(adapter, bias="lora_only")
    assert inspect(rewrite_tensors(adapter, lambda t: zero | {bias: torch.ones(64)})).problems == ()


@pytest.mark.parametrize(
    ("options", "tensors", "is_changed"),
    [
        ({}, {}, False),
        ({"use_dora": True}, {"layers.0.self_attn.q_proj.lora_magnitude_vector": 1}, False),
        ({"modules_to_save": ["lm_head"]}, {"lm_head.weight": 2}, False),
        ({"bias": "all"}, {"model.visual.merger.ln_q.bias": 1}, True),
        ({"init_lora_weights": "pissa"}, {}, True),
        ({}, {"model.language_model.embed_tokens.weight": 2}, True),
    ],
)
def test_what_changes_the_base_model(
    adapter: Path, options: dict[str, Any], tensors: dict[str, int], is_changed: bool
) -> None:
    rewrite_config(adapter, **options)
    added = {f"base_model.model.{name}": torch.ones((2,) * dim) for name, dim in tensors.items()}
    assert inspect(rewrite_tensors(adapter, lambda t: t | added)).is_base_changed is is_changed
