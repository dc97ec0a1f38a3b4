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
from lorgnette.lora.inspect import inspect_adapter
from lorgnette.lora.metadata import CONFIG_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def rewrite_tensors(adapter: Path, change: Callable[[Tensors], Tensors]) -> Path:
    save_file(change(load_file(adapter / WEIGHTS_FILE)), adapter / WEIGHTS_FILE)
    return adapter


def rewrite_config(adapter: Path, **values: Any) -> Path:
    config = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps(config | values))
    return adapter


def test_intact_adapter(saved: Path) -> None:
    report = inspect_adapter(saved)
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
        (lambda t: {name: x * 0 if "q_proj" in name else x for name, x in t.items()}, None),
    ],
)
def test_broken_tensors(adapter: Path, change: Any, problem: str | None) -> None:
    problems = inspect_adapter(rewrite_tensors(adapter, change)).problems
    assert len(problems) == (problem is not None)
    assert all(text.startswith(problem or "") for text in problems)


def test_modules_with_zero_b_are_counted(adapter: Path) -> None:
    report = inspect_adapter(
        rewrite_tensors(adapter, lambda t: {name: x * 0 if "q_proj" in name else x for name, x in t.items()})
    )
    assert +report.num_zero == {"self_attn.q_proj": 2}


@pytest.mark.parametrize("cut", [-1, -10_000, 300, 9, 5])
def test_truncated_file_reports_its_size(adapter: Path, cut: int) -> None:
    path = adapter / WEIGHTS_FILE
    size = path.stat().st_size
    os.truncate(path, size + cut if cut < 0 else cut)
    with pytest.raises(LorgnetteError) as caught:
        inspect_adapter(adapter)
    assert caught.value.message.startswith(f"{WEIGHTS_FILE} is ")
    assert str(size + cut if cut < 0 else cut) in caught.value.message
    assert cut >= 0 or str(size) in caught.value.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 4, "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>" * 9, "cannot be read: "),
    ],
)
def test_file_of_another_kind(adapter: Path, content: bytes, reason: str) -> None:
    (adapter / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(LorgnetteError, match=f"{WEIGHTS_FILE} {reason}"):
        inspect_adapter(adapter)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"r": 8}, f"{CONFIG_FILE} has rank 8, the tensors have rank 4: files of two adapters"),
        ({"r": 0}, f"{CONFIG_FILE} is invalid: r is 0, lora_alpha 8"),
        ({"r": None}, f"{CONFIG_FILE} is invalid: r is None, lora_alpha 8"),
        ({"lora_alpha": "x"}, f"{CONFIG_FILE} is invalid: r is 4, lora_alpha 'x'"),
        ({"peft_type": "LOHA"}, f"{CONFIG_FILE}: peft_type is LOHA, not LORA"),
        ({"r": 8, "rank_pattern": {"q_proj": 4}}, None),
        ({"lora_alpha": 0.5}, None),
    ],
)
def test_config_that_does_not_fit_the_tensors(adapter: Path, changed: dict[str, Any], problem: str | None) -> None:
    assert inspect_adapter(rewrite_config(adapter, **changed)).problems == ((problem,) if problem else ())


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_unreadable_config(adapter: Path, content: str) -> None:
    (adapter / CONFIG_FILE).write_text(content)
    with pytest.raises(LorgnetteError, match=f"{CONFIG_FILE} cannot be read"):
        inspect_adapter(adapter)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(LorgnetteError, match=f"{name} is missing"):
        inspect_adapter(adapter)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"use_dora": True}, "its adapter_config.json sets use_dora"),
        ({"bias": "all"}, "its adapter_config.json sets bias"),
        ({"lora_bias": True}, "its adapter_config.json sets lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "its adapter_config.json sets modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "its adapter_config.json sets layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "its adapter_config.json sets init_lora_weights"),
        ({"init_lora_weights": "gaussian", "use_rslora": True}, None),
    ],
)
def test_options_beyond_plain_lora_ask_for_a_merge(adapter: Path, changed: dict[str, Any], reason: str | None) -> None:
    assert inspect_adapter(rewrite_config(adapter, **changed)).merge_reason == reason


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.model.visual.blocks.0.mlp.up_proj.lora_A.weight",
    ],
)
def test_tensors_beyond_the_decoder_ask_for_a_merge(adapter: Path, name: str) -> None:
    report = inspect_adapter(rewrite_tensors(adapter, lambda t: t | {name: torch.ones(4, 2)}))
    assert report.merge_reason is not None
    assert report.merge_reason.startswith("it adapts more than the decoder's linear layers: ")
