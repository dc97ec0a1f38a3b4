"""What is in an adapter's files, and every way in which they may be broken."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.errors import LorgnetteError
from lorgnette.lora.inspect import inspect_adapter
from lorgnette.lora.peft_files import CONFIG_FILE, WEIGHTS_FILE

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copied")


def rewritten(folder: Path, change: Any) -> Path:
    tensors: Tensors = change(load_file(folder / WEIGHTS_FILE))
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def test_a_whole_adapter(saved: Path) -> None:
    found = inspect_adapter(saved)
    assert (found.num_modules, found.num_zero, found.rank, found.problems, found.vllm_obstacles) == (14, 0, 4, (), ())
    assert {kind.name: kind.num_modules for kind in found.kinds} == {
        "self_attn.q_proj": 2, "self_attn.k_proj": 2, "self_attn.v_proj": 2, "self_attn.o_proj": 2,
        "mlp.gate_proj": 2, "mlp.up_proj": 2, "mlp.down_proj": 2,
    }  # fmt: skip
    tensors = load_file(saved / WEIGHTS_FILE)
    largest = max(t.abs().max().item() for name, t in tensors.items() if name.endswith("q_proj.lora_B.weight"))
    assert next(kind.max_b for kind in found.kinds if kind.name == "self_attn.q_proj") == largest


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (
            lambda t: {name: x * 0 if "lora_B" in name else x for name, x in t.items()},
            ["B is zero in all 14 modules: the adapter does nothing"],
        ),
        (lambda t: {name: x for name, x in t.items() if "lora_A" in name}, ["14 of 14 modules have only one of their"]),
        (lambda t: {name: x / 0 if "0.mlp.up_proj" in name else x for name, x in t.items()}, ["2 of 28 tensors hold"]),
        (lambda t: {"odd": torch.zeros(1)}, ["there is no LoRA tensor in it"]),
        (lambda t: {name: x * 0 if "q_proj" in name else x for name, x in t.items()}, []),
    ],
)
def test_faults(copied: Path, change: Any, faults: list[str]) -> None:
    found = inspect_adapter(rewritten(copied, change)).problems
    assert len(found) == len(faults)
    assert all(one.startswith(start) for one, start in zip(found, faults, strict=True))


def test_silent_modules_are_counted(copied: Path) -> None:
    found = inspect_adapter(rewritten(copied, lambda t: {n: x * 0 if "q_proj" in n else x for n, x in t.items()}))
    assert found.num_zero == 2
    assert [kind.name for kind in found.kinds if kind.num_zero] == ["self_attn.q_proj"]


@pytest.mark.parametrize("cut", [-1, -10_000, 300, 9, 5])
def test_a_file_cut_short_says_how_much_is_there(copied: Path, cut: int) -> None:
    path = copied / WEIGHTS_FILE
    whole = path.stat().st_size
    os.truncate(path, whole + cut if cut < 0 else cut)
    with pytest.raises(LorgnetteError) as caught:
        inspect_adapter(copied)
    there = f"{whole + cut} of {whole} bytes are there" if cut < 0 else f"{cut} bytes are there, not its whole header"
    assert caught.value.message == f"{WEIGHTS_FILE} is cut short: {there}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 4, "is a Git LFS pointer and not the file itself: `git lfs"),
        (b"<!DOCTYPE html><html>" * 9, "cannot be read: "),
    ],
)
def test_no_safetensors_at_all(copied: Path, content: bytes, said: str) -> None:
    (copied / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(LorgnetteError, match=f"{WEIGHTS_FILE} {said}"):
        inspect_adapter(copied)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"r": 8}, f"{CONFIG_FILE} says rank 8, the tensors have rank 4: the two files are not one adapter's"),
        ({"r": 0}, f"{CONFIG_FILE} does not fit: r is 0, lora_alpha 8"),
        ({"r": None}, f"{CONFIG_FILE} does not fit: r is None, lora_alpha 8"),
        ({"lora_alpha": "x"}, f"{CONFIG_FILE} does not fit: r is 4, lora_alpha 'x'"),
        ({"peft_type": "LOHA"}, f"{CONFIG_FILE} says that it is a LOHA, not a LORA"),
        ({"r": 8, "rank_pattern": {"q_proj": 4}}, None),
        ({"lora_alpha": 0.5}, None),
    ],
)
def test_settings_that_are_not_the_tensors(copied: Path, changed: dict[str, Any], said: str | None) -> None:
    config = json.loads((copied / CONFIG_FILE).read_text())
    (copied / CONFIG_FILE).write_text(json.dumps(config | changed))
    assert inspect_adapter(copied).problems == ((said,) if said else ())


@pytest.mark.parametrize(("name", "content"), [(CONFIG_FILE, "{"), (CONFIG_FILE, "[]"), (CONFIG_FILE, "{}")])
def test_a_broken_config(copied: Path, name: str, content: str) -> None:
    (copied / name).write_text(content)
    with pytest.raises(LorgnetteError, match=f"{name} cannot be read"):
        inspect_adapter(copied)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(LorgnetteError, match=f"{name} is missing"):
        inspect_adapter(copied)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"use_dora": True}, "it is a DoRA"),
        ({"bias": "all"}, "biases are trained"),
        ({"lora_bias": True}, "biases are trained"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"layer_replication": [[0, 2]]}, "layers are replicated"),
        ({"init_lora_weights": "pissa_niter_4"}, "it starts from pissa_niter_4, which changes the base"),
        ({"init_lora_weights": "gaussian", "use_rslora": True}, None),
    ],
)
def test_what_vllm_refuses(copied: Path, changed: dict[str, Any], said: str | None) -> None:
    config = json.loads((copied / CONFIG_FILE).read_text())
    (copied / CONFIG_FILE).write_text(json.dumps(config | changed))
    assert inspect_adapter(copied).vllm_obstacles == ((said,) if said else ())


def test_what_vllm_has_no_place_for(copied: Path) -> None:
    """Modules beside the decoder's projections, and tensors that are no LoRA factors."""
    more = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(4, 2),
        "base_model.model.lm_head.lora_B.weight": torch.ones(2, 4),
        "base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2),
    }
    assert inspect_adapter(rewritten(copied, lambda t: t | more)).vllm_obstacles == (
        "more is adapted than the decoder's projections: lm_head",
        "there are tensors beside LoRA's two factors: language_model.embed_tokens.token_adapter.trainable_tokens_delta",
    )


def test_vllms_ranks(copied: Path) -> None:
    config = json.loads((copied / CONFIG_FILE).read_text())

    def ranked(rank: int, **more: Any) -> Path:
        (copied / CONFIG_FILE).write_text(json.dumps(config | {"r": rank} | more))
        name = "base_model.model.model.visual.blocks.0.attn.qkv.lora_{}.weight"
        return rewritten(
            copied, lambda _: {name.format("A"): torch.ones(rank, 2), name.format("B"): torch.ones(2, rank)}
        )

    assert [inspect_adapter(ranked(rank)).max_lora_rank for rank in (1, 2, 16, 17, 64, 300, 512)] == [
        1,
        8,
        16,
        32,
        64,
        320,
        512,
    ]
    assert inspect_adapter(ranked(8, r=64, rank_pattern={"qkv": 8})).max_lora_rank == 64  # what vLLM reads is `r`
    assert inspect_adapter(ranked(600)).vllm_obstacles == (
        "rank 600 is above its limit of 512",
        "the vision tower is adapted, which it leaves out or refuses",
    )
