"""A merged checkpoint has the base's files with other weights, and gives the logits of base plus adapter."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from lorgnette.config import LoraSettings
from lorgnette.engine.peft_engine import load_adapter, load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.lora.merge import (
    Rounding,
    explain_merge_error,
    find_merge_obstacle,
    find_stored_dtype,
    untie_output_layer,
    write_merged_checkpoint,
)
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.family import convert_weight_name
from lorgnette.models.registry import FAMILIES


def compute_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(40)[None]).logits
    return logits


@pytest.fixture
def float32_base(tiny: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint stored in float32."""
    folder = shutil.copytree(tiny, tmp_path / "float32")
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_merged_folder_has_the_base_files_and_the_sum(
    float32_base: Path, saved: Path, load_tiny_model: Callable[[], Any], tmp_path: Path
) -> None:
    tuned = load_adapter(load_tiny_model(), saved)
    with_adapter, without = compute_logits(tuned), compute_logits(load_tiny_model())
    write_merged_checkpoint(tuned, BaseCheckpoint.from_folder(float32_base), tmp_path / "merged")
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {path.name for path in float32_base.iterdir()}
    for path in float32_base.iterdir():
        if path.suffix == ".json":
            assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()
    merged = load_base_model(BaseCheckpoint.from_folder(tmp_path / "merged"), torch.device("cpu"), torch.float32)
    logits = compute_logits(merged)
    torch.testing.assert_close(logits, with_adapter, atol=1e-4, rtol=0)
    assert (logits - without).abs().max() > 1e-2  # negative control: the adapter changes the logits


def test_names_and_unadapted_tensors_equal_the_base(
    tiny: Path, saved: Path, load_tiny_model: Callable[[], Any], tmp_path: Path
) -> None:
    before = load_file(tiny / "model.safetensors")
    assert "lm_head.weight" not in before  # tied, and stored once
    write_merged_checkpoint(
        load_adapter(load_tiny_model(), saved), BaseCheckpoint.from_folder(tiny), tmp_path / "merged"
    )
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert len(changed) == 2 * 7
    assert all(name.startswith("model.layers.") and name.endswith("_proj.weight") for name in changed)


def test_shards_and_dtypes_equal_the_base(
    tiny: Path, float32_base: Path, saved: Path, load_tiny_model: Callable[[], Any], tmp_path: Path
) -> None:
    """A hub's folder: two shards and their index, in bf16 except one tensor, and a file that is not copied."""
    base = shutil.copytree(tiny, tmp_path / "base")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {name: f"model-0000{1 + (i > 20)}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(shards.values())):
        save_file({name: tensors[name] for name in names if shards[name] == shard}, base / shard, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    (base / "manifest.json").write_text("{}")
    write_merged_checkpoint(
        load_adapter(load_tiny_model(), saved), BaseCheckpoint.from_folder(base), tmp_path / "merged"
    )
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {path.name for path in base.iterdir()} - {"manifest.json"}
    for shard in sorted(set(shards.values())):
        before, after = load_file(base / shard), load_file(tmp_path / "merged" / shard)
        assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in before.items()}
        assert {name: t.shape for name, t in after.items()} == {name: t.shape for name, t in before.items()}
        assert (tmp_path / "merged" / shard).stat().st_mode & 0o777 == (base / "config.json").stat().st_mode & 0o777
    load_base_model(BaseCheckpoint.from_folder(tmp_path / "merged"), torch.device("cpu"), torch.bfloat16)
    assert find_stored_dtype(BaseCheckpoint.from_folder(base)) == "bfloat16"
    assert find_stored_dtype(BaseCheckpoint.from_folder(float32_base)) == "float32"


def store_in_two_shards(base: Path, folder: Path, extra: dict[str, torch.Tensor], *, fuse_experts: bool) -> Path:
    """The checkpoint in the hub's layout of two files, with tensors that transformers does not load."""
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    tensors = load_file(base / "model.safetensors") | extra
    if fuse_experts:
        for prefix in sorted({name.partition(".experts.")[0] for name in tensors if ".experts." in name}):
            names = [f"{prefix}.experts.{n}" for n in range(8)]
            gate, up, down = (
                torch.stack([tensors.pop(f"{name}.{kind}_proj.weight") for name in names])
                for kind in ("gate", "up", "down")
            )
            tensors |= {f"{prefix}.experts.gate_up_proj": torch.cat((gate, up), 1), f"{prefix}.experts.down_proj": down}
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(shards.values()):
        part = {name: tensor.contiguous() for name, tensor in tensors.items() if shards[name] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return folder


def load_shards(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for shard in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(shard).items()}


@pytest.mark.parametrize(
    "case",
    ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_vl_moe", "qwen3_vl_moe experts", "qwen3_5_moe experts",
     "qwen3_5_moe fused experts"],
)  # fmt: skip
def test_every_family_merges_into_the_layout_of_its_files(
    tiny_family: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    """The logits of base + adapter in plain transformers; only adapted tensors differ from the base, to the bit."""
    torch.manual_seed(0)  # rounding depends on the draw, and came to 1.2e-5 in one of them
    family, adapts_experts = FAMILIES[case.split(maxsplit=1)[0]], case.endswith("experts")
    extra = {f"{start}layers.0.weight": torch.randn(3, 5).bfloat16() for start in family.ignored_weights}
    tiny = tiny_family(family.model_type)
    base = store_in_two_shards(tiny, tmp_path / "base", extra, fuse_experts="fused" in case)
    checkpoint = BaseCheckpoint.from_folder(base)
    model = load_base_model(checkpoint, torch.device("cpu"), torch.float32)
    model.set_experts_implementation("eager")  # the one that knows float64
    without = compute_logits(model)
    lora = LoraConfig(
        r=2, target_modules=family.build_target_pattern(LoraSettings().target_modules, ("language",)),
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if adapts_experts else None,
    )  # fmt: skip
    tuned = get_peft_model(model, lora).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.01)
    modules = {name.rpartition(".lora_A")[0] for name in get_peft_model_state_dict(tuned) if "lora_A" in name}
    # In float64: a recurrence makes rounding larger than what is looked for.
    with_adapter = compute_logits(copy.deepcopy(tuned).double())
    write_merged_checkpoint(tuned, checkpoint, tmp_path / "merged")
    merged = getattr(transformers, family.class_name).from_pretrained(tmp_path / "merged", dtype=torch.float64)
    merged.set_experts_implementation("eager")
    logits = compute_logits(merged.eval())
    torch.testing.assert_close(logits, with_adapter, atol=1e-5, rtol=0)
    assert (logits - without).abs().max() > 1e-3  # negative control: the adapter changes the logits

    before, after = load_shards(base), load_shards(tmp_path / "merged")
    assert after.keys() == before.keys() >= extra.keys()
    changed = {name for name in before if before[name].view(torch.uint8).ne(after[name].view(torch.uint8)).any()}
    adapted = {f"{name.removeprefix('base_model.model.')}.weight" for name in modules if ".experts" not in name}
    assert {convert_weight_name(name) for name in changed if ".experts." not in name} == adapted
    assert {name for name in changed if ".experts." in name} == {
        name for name in before if ".experts." in name and adapts_experts
    }
    for name in before:
        assert (after[name].dtype, after[name].shape) == (before[name].dtype, before[name].shape)


def test_rounding_is_measured_by_projection() -> None:
    """Against the definition on values that can be counted: 1 is next to 1.0078125 in bfloat16."""
    base, gap = torch.ones(4), 2.0**-7
    change = torch.tensor([gap, 0.6 * gap, 0.4 * gap, -0.1 * gap / 2])  # up, up, back to 1, back to 1
    rounding = Rounding("bfloat16")
    rounding.add(base.bfloat16(), base + change, (base + change).bfloat16())
    assert rounding.kept == pytest.approx((1 + 0.6) / (1 + 0.36 + 0.16 + 0.0025), rel=1e-4)
    before = rounding.kept
    rounding.add(base, base, base)  # a weight without change does not count
    assert rounding.kept == before
    exact, lost = Rounding("float32"), Rounding("bfloat16")
    exact.add(base, base + change, base + change)
    lost.add(base.bfloat16(), base + gap / 5, base.bfloat16())
    assert (exact.kept, lost.kept, Rounding("float32").kept) == (1, 0, 1)


def test_less_of_a_weaker_adapter_is_kept(
    tiny: Path, saved: Path, load_tiny_model: Callable[[], Any], tmp_path: Path
) -> None:
    """In float32 all of it is; config.json then says float32, and a check that raises leaves no folder."""
    checkpoint, kept = BaseCheckpoint.from_folder(tiny), []
    for scale in (1.0, 0.01):
        tuned = load_adapter(load_tiny_model(), saved)
        for name, parameter in tuned.named_parameters():
            parameter.data *= scale if "lora_B" in name else 1
        kept.append(write_merged_checkpoint(tuned, checkpoint, tmp_path / str(scale)).kept)
    assert kept[0] == pytest.approx(1, abs=0.01)
    assert 0.01 < kept[1] < 0.9
    tuned = load_adapter(load_tiny_model(), saved)
    wide = write_merged_checkpoint(tuned, checkpoint, tmp_path / "wide", use_float32=True)
    assert (wide.dtype, wide.kept) == ("float32", 1.0)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "wide" / "model.safetensors").values())
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"

    def refuse(rounding: Rounding) -> None:
        raise LorgnetteError("too little")

    with pytest.raises(LorgnetteError, match="too little"):
        write_merged_checkpoint(load_adapter(load_tiny_model(), saved), checkpoint, tmp_path / "no", check=refuse)
    assert not (tmp_path / "no").exists()


def test_a_tensor_unknown_to_the_model_is_refused(
    tiny: Path, saved: Path, load_tiny_model: Callable[[], Any], tmp_path: Path
) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"model.odd": torch.zeros(1)}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(LorgnetteError, match=r"no tensor for model\.odd"):
        write_merged_checkpoint(
            load_adapter(load_tiny_model(), saved), BaseCheckpoint.from_folder(base), tmp_path / "merged"
        )
    assert not (tmp_path / "merged").exists()


KINDS: dict[str, dict[str, Any]] = {
    "dora": {
        "use_dora": True,
        "target_modules": r".*language_model.*\.(q_proj|up_proj)",
        "exclude_modules": r".*\.0\..*",
    },
    "ranks": {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {r"layers\.1\..*": 1}},
    "bias": {"bias": "all", "lora_bias": True, "target_modules": ["q_proj", "qkv"]},
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "tokens": {"trainable_token_indices": [1, 5]},
    "pissa": {"init_lora_weights": "pissa", "layers_to_transform": [1]},
}
"""Kinds of adapters that PEFT saves, beside plain LoRA of two projections."""


def save_kind(model: Any, folder: Path, options: dict[str, Any]) -> Any:
    """Make an adapter with random values in plain PEFT, save it, and return its model."""
    torch.manual_seed(0)
    lora = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]} | options)
    model = get_peft_model(model, lora)
    names = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    for name, parameter in model.named_parameters():
        is_saved = parameter.requires_grad or any(name == saved for saved in names)
        if is_saved and "magnitude" not in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


@pytest.mark.filterwarnings("ignore")  # PEFT's
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_loads_and_merges_as_in_peft(
    kind: str, load_tiny_model: Callable[[], Any], float32_base: Path, tmp_path: Path
) -> None:
    """The reference engine gives the logits of PEFT's own model, and the merged checkpoint gives them too."""
    base = load_tiny_model()
    save_kind(copy.deepcopy(base), tmp_path / "adapter", KINDS[kind])
    expected = compute_logits(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval())
    without = compute_logits(base)
    saved, checkpoint = SavedAdapter.load(tmp_path / "adapter"), BaseCheckpoint.from_folder(float32_base)
    assert find_merge_obstacle(saved, checkpoint) is None
    untie_output_layer(base, saved)
    tuned = load_adapter(base, tmp_path / "adapter")
    torch.testing.assert_close(compute_logits(tuned), expected, atol=1e-5, rtol=0)
    assert (expected - without).abs().max() > 1e-3  # negative control: the adapter changes the logits
    write_merged_checkpoint(tuned, checkpoint, tmp_path / "merged")
    merged = load_base_model(BaseCheckpoint.from_folder(tmp_path / "merged"), torch.device("cpu"), torch.float32)
    torch.testing.assert_close(compute_logits(merged), expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore")  # PEFT's
def test_what_peft_cannot_merge_is_known_before(load_tiny_model: Callable[[], Any], tiny: Path, tmp_path: Path) -> None:
    """Each obstacle is one: PEFT fails to merge the adapter."""
    bias = {"lora_bias": True, "target_modules": ["q_proj", "o_proj"]}
    for options, reason in (
        ({"alora_invocation_tokens": [10, 11]}, "its invocation"),
        (bias, "2 modules that have none, such as model."),
    ):
        folder = tmp_path / reason[:3]
        save_kind(load_tiny_model(), folder, options)
        obstacle = find_merge_obstacle(SavedAdapter.load(folder), BaseCheckpoint.from_folder(tiny))
        assert reason in str(obstacle)
        with pytest.raises(LorgnetteError, match=r"it cannot be merged: .") as caught:
            write_merged_checkpoint(
                load_adapter(load_tiny_model(), folder), BaseCheckpoint.from_folder(tiny), tmp_path / "out"
            )
        assert caught.value.__cause__ is not None  # PEFT's error
        assert not (tmp_path / "out").exists()
    assert explain_merge_error("no\nway") == "it cannot be merged: no"
