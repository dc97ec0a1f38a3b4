"""The reference engine: losses and gradients for the trainer, base models and adapters loaded or refused by name.

(Equality with transformers' numbers: parity/test_reference.py; with PEFT's files: parity/test_adapter.py.)
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lorgnette.config import LoraSettings
from lorgnette.engine.packed_attention import ATTENTION_NAME
from lorgnette.engine.peft_engine import (
    ReferenceEngine,
    add_adapter,
    get_adapter_state,
    load_adapter,
    load_base_model,
)
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.io.atomic import atomic_folder
from lorgnette.lora import peft_files
from lorgnette.lora.metadata import METADATA_FILE, AdapterMetadata
from lorgnette.lora.peft_config import CONFIG_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.models.base_checkpoint import DOWNLOAD_AGAIN, BaseCheckpoint
from lorgnette.models.registry import FAMILIES, parse_configs
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch

CPU = torch.device("cpu")
FAMILY = FAMILIES["qwen2_vl"]
LAYER = "layers.0.mlp.gate_proj.weight"
HUB_NAME, HF_NAME = f"model.{LAYER}", f"model.language_model.{LAYER}"  # in the hub's file, and in transformers


@pytest.fixture(scope="module")
def batch(tiny: Path, adapter_metadata: AdapterMetadata, conversations: list[Example]) -> PackedBatch:
    processor = Processor.from_folder(tiny, adapter_metadata.processor)
    return pack([processor.encode(example) for example in conversations], 10)


def test_beside_float16_the_vision_tower_is_float32(
    tiny: Path, adapter_metadata: AdapterMetadata, batch: PackedBatch
) -> None:
    """Also where autocast surrounds it: its residual stream may grow beyond float16's largest number."""
    base = load_base_model(BaseCheckpoint.from_folder(tiny), CPU, torch.float16)
    dtypes = {name: parameter.dtype for name, parameter in base.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("model.visual.")} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "visual" not in name} == {torch.float16}
    tower, patch_dim = HfVisionTower(base), parse_configs(base.config.to_dict())[1].patch_dim
    patches = torch.randn(sum(grid.t * grid.h * grid.w for grid in batch.grids), patch_dim)
    with torch.no_grad():
        expected = tower(batch.grids, patches)
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(tower(batch.grids, patches), expected)


@pytest.fixture
def build_engine(tiny: Path, adapter_metadata: AdapterMetadata, batch: PackedBatch) -> Callable[[Any], ReferenceEngine]:
    def build(model: Any) -> ReferenceEngine:
        image_processor = Processor.from_folder(tiny, adapter_metadata.processor).image_processor
        features = Features(HfVisionTower(model.get_base_model()), image_processor, is_live=False)
        assert not features.prepare(batch.grids)
        return ReferenceEngine(model.eval(), features)

    return build


def test_the_loss_is_the_weighted_sum(tuned: Any, build_engine: Any, batch: PackedBatch) -> None:
    engine = build_engine(tuned)
    with torch.no_grad():
        losses = engine.compute_label_losses(batch)
        assert losses.shape == (len(batch.targets),)
        weights = torch.rand(len(losses))
        loss = engine.compute_loss(replace(batch, label_weights=weights.numpy()))
    torch.testing.assert_close(loss, (losses * weights).sum())


def test_only_the_adapter_gets_gradients(tuned: Any, build_engine: Any, batch: PackedBatch) -> None:
    build_engine(tuned).backward(batch)
    with_gradient = {name.replace(".default.", ".") for name, p in tuned.named_parameters() if p.grad is not None}
    assert with_gradient == set(get_adapter_state(tuned))
    assert all(p.grad.any() for p in get_adapter_state(tuned).values())
    tuned.zero_grad()


def test_losses_and_gradients_are_float32_with_bfloat16_weights(
    load_tiny_model: Callable[[], Any], build_engine: Any, batch: PackedBatch
) -> None:
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model = add_adapter(load_tiny_model().to(dtype), FAMILY, LoraSettings(rank=4), seed=0)
        engine = build_engine(model)
        loss = engine.compute_label_losses(batch)
        assert loss.dtype == torch.float32
        loss.mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in get_adapter_state(model).values())
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], atol=0.1, rtol=0)
    assert not torch.equal(losses[1], losses[0])


def test_a_text_only_batch_needs_no_features(
    tiny: Path, adapter_metadata: AdapterMetadata, tuned: Any, conversations: list[Example]
) -> None:
    processor = Processor.from_folder(tiny, adapter_metadata.processor)
    features = Features(HfVisionTower(tuned.get_base_model()), processor.image_processor, is_live=False)
    loss = ReferenceEngine(tuned.eval(), features).compute_loss(pack([processor.encode(conversations[2])], 1))
    assert torch.isfinite(loss)


def test_dropout_is_active_only_in_training(tuned: Any, build_engine: Any, batch: PackedBatch) -> None:
    engine = build_engine(tuned)
    assert torch.equal(engine.compute_loss(batch), engine.compute_loss(batch))
    assert not torch.equal(engine.backward(batch), engine.backward(batch))
    tuned.zero_grad()
    tuned.eval()


def catch_base_error(folder: Path) -> LorgnetteError:
    with pytest.raises(LorgnetteError) as caught:
        load_base_model(BaseCheckpoint.from_folder(folder), CPU, torch.float32)
    assert caught.value.where == str(folder)
    assert caught.value.hint == DOWNLOAD_AGAIN
    return caught.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_weights_equal_the_file_and_are_frozen(tiny: Path, dtype: torch.dtype) -> None:
    model = load_base_model(BaseCheckpoint.from_folder(tiny), CPU, dtype)
    state = model.state_dict()
    for name, tensor in load_file(tiny / "model.safetensors").items():
        ours = f"model.{name}" if name.startswith("visual") else name.replace("model.", "model.language_model.", 1)
        torch.testing.assert_close(state[ours], tensor.to(dtype), rtol=0, atol=0)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config.text_config._attn_implementation == ATTENTION_NAME


def test_the_attention_of_config_json_is_not_used(tiny: Path, tmp_path: Path) -> None:
    """It could be one that transformers downloads."""
    folder = shutil.copytree(tiny, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": "flash_attention_2"}))
    model = load_base_model(BaseCheckpoint.from_folder(folder), CPU, torch.float32)
    assert model.config._attn_implementation == model.config.vision_config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == ATTENTION_NAME


def test_the_sampling_defaults_of_the_checkpoint_are_not_used(tiny: Path) -> None:
    assert '"do_sample": true' in (tiny / "generation_config.json").read_text()
    assert not load_base_model(BaseCheckpoint.from_folder(tiny), CPU, torch.float32).generation_config.do_sample


def test_unfitting_base_weights_are_counted_and_named(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    tensors = load_file(tiny / "model.safetensors")
    for changed, text in (
        ({n: t for n, t in tensors.items() if n != HUB_NAME}, f"1 missing ({HF_NAME})"),
        (tensors | {"extra.weight": torch.zeros(2)}, "1 unexpected (extra.weight)"),
        (tensors | {HUB_NAME: torch.zeros(3, 3)}, f"1 of another shape ({HF_NAME})"),
        ({n: t for n, t in tensors.items() if "visual" not in n}, "missing (model.visual.blocks.0."),
    ):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        error = catch_base_error(folder)
        assert error.message.startswith("weights do not fit the model: ")
        assert text in error.message
        assert len(error.message) < 300


def test_weights_that_transformers_ignores_may_be_there(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    """Those of multi-token prediction; other tensors are refused as ever."""
    folder = shutil.copytree(tiny_family("qwen3_5"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    for extra, message in (("mtp.fc.weight", None), ("mtq.fc.weight", "1 unexpected (mtq.fc.weight)")):
        save_file(tensors | {extra: torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
        if message is None:
            load_base_model(BaseCheckpoint.from_folder(folder), CPU, torch.float32)
        else:
            assert message in catch_base_error(folder).message


def test_a_transformers_without_the_family_is_named(tiny: Path) -> None:
    family = replace(FAMILY, title="Qwen9-VL", class_name="Qwen9VLForConditionalGeneration")
    with pytest.raises(LorgnetteError, match="does not know Qwen9-VL: it has no Qwen9VLForCond") as caught:
        load_base_model(replace(BaseCheckpoint.from_folder(tiny), family=family), CPU, torch.float32)
    assert caught.value.hint == "pip install --upgrade transformers"


@pytest.mark.parametrize("size", [0, 4, -1000])
def test_a_truncated_weight_file_is_refused(tiny: Path, tmp_path: Path, size: int) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert catch_base_error(folder).message.startswith("weights cannot be loaded: ")


@pytest.fixture
def adapter_copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def catch_adapter_error(load_tiny_model: Callable[[], Any], folder: Path) -> LorgnetteError:
    with pytest.raises(LorgnetteError) as caught:
        load_adapter(load_tiny_model(), folder)
    assert str(folder) in str(caught.value.where)
    assert caught.value.hint
    return caught.value


def list_trainable(model: Any) -> set[str]:
    return {name.replace(".default.", ".") for name, p in model.named_parameters() if p.requires_grad}


def test_a_fresh_adapter_depends_on_its_seed_and_changes_nothing(load_tiny_model: Callable[[], Any]) -> None:
    before = torch.random.get_rng_state()
    first, same, different = (
        get_adapter_state(add_adapter(load_tiny_model(), FAMILY, LoraSettings(rank=4), seed)) for seed in (3, 3, 4)
    )
    torch.testing.assert_close(torch.random.get_rng_state(), before)
    assert len(first) == 2 * 7 * 2
    for name, tensor in first.items():
        assert tensor.requires_grad
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, same[name])
        if "lora_B" in name:
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, different[name])


def test_only_the_adapter_is_trainable(load_tiny_model: Callable[[], Any]) -> None:
    model = add_adapter(load_tiny_model().to(torch.bfloat16), FAMILY, LoraSettings(rank=4), seed=0)
    state = get_adapter_state(model)
    assert list_trainable(model) == set(state)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_settings_reach_peft(load_tiny_model: Callable[[], Any]) -> None:
    lora = LoraSettings(rank=3, alpha=7, dropout=0.25, use_rslora=True, target_modules=("v_proj",), parts=("language",))
    config = add_adapter(load_tiny_model(), FAMILY, lora, seed=0).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (3, 7, 0.25, True)
    assert config.target_modules == FAMILY.build_target_pattern(("v_proj",), ("language",))


def test_a_saved_adapter_loads_unchanged(
    saved: Path, tuned: Any, load_tiny_model: Callable[[], Any], adapter_metadata: AdapterMetadata
) -> None:
    assert {path.name for path in saved.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE, METADATA_FILE}
    model = load_adapter(load_tiny_model(), saved)
    expected = get_adapter_state(tuned)
    assert get_adapter_state(model).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in get_adapter_state(model).items())
    assert not any(p.requires_grad for p in model.parameters())
    trainable = load_adapter(load_tiny_model(), saved, is_trainable=True)
    assert list_trainable(trainable) == set(expected)
    assert json.loads((saved / CONFIG_FILE).read_text())["base_model_name_or_path"] == adapter_metadata.model


@pytest.mark.filterwarnings("ignore")  # PEFT's
def test_dora_and_saved_modules_run_in_bfloat16(load_tiny_model: Callable[[], Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    lora = LoraConfig(r=4, use_dora=True, init_lora_weights=False, **options)
    torch.manual_seed(0)
    get_peft_model(load_tiny_model(), lora).save_pretrained(tmp_path)
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_adapter(load_tiny_model().to(dtype), tmp_path)
        with torch.no_grad():
            logits.append(model(input_ids=torch.arange(40)[None]).logits.float())
    torch.testing.assert_close(logits[1], logits[0], atol=0.2, rtol=0)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_a_folder_with_a_missing_file_is_no_adapter(
    adapter_copy: Path, load_tiny_model: Callable[[], Any], name: str
) -> None:
    (adapter_copy / name).unlink()
    assert catch_adapter_error(load_tiny_model, adapter_copy).message == f"{name} is missing"


def test_unfitting_adapter_tensors_are_counted_and_named(
    adapter_copy: Path, load_tiny_model: Callable[[], Any]
) -> None:
    tensors = load_file(adapter_copy / WEIGHTS_FILE)
    half = {name: tensor for name, tensor in tensors.items() if "lora_A" in name}
    save_file(half, adapter_copy / WEIGHTS_FILE)
    error = catch_adapter_error(load_tiny_model, adapter_copy)
    assert error.message.startswith("14 of 28 adapter tensors match the model; these do not: ")
    assert "layers.0.mlp.down_proj.lora_B.weight" in error.message
    save_file(tensors | {"base_model.model.elsewhere.lora_A.weight": torch.zeros(4, 4)}, adapter_copy / WEIGHTS_FILE)
    assert catch_adapter_error(load_tiny_model, adapter_copy).message.endswith(
        "these do not: base_model.model.elsewhere.lora_A.weight"
    )


def test_another_rank_is_refused_and_the_tensor_named(adapter_copy: Path, load_tiny_model: Callable[[], Any]) -> None:
    settings = json.loads((adapter_copy / CONFIG_FILE).read_text())
    (adapter_copy / CONFIG_FILE).write_text(json.dumps(settings | {"r": 8}))
    error = catch_adapter_error(load_tiny_model, adapter_copy)
    assert error.message.startswith("PEFT cannot load it: size mismatch for ")
    assert "q_proj.lora_A" in error.message


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_a_broken_weight_file_is_named(
    adapter_copy: Path, load_tiny_model: Callable[[], Any], content: bytes | None
) -> None:
    whole = (adapter_copy / WEIGHTS_FILE).read_bytes()
    (adapter_copy / WEIGHTS_FILE).write_bytes(whole[:-100] if content is None else content)
    error = catch_adapter_error(load_tiny_model, adapter_copy)
    assert error.message.startswith(f"{WEIGHTS_FILE} is ")
    assert error.where == str(adapter_copy / WEIGHTS_FILE)


@pytest.mark.parametrize(
    "changed",
    [
        "", "{", "[]", "{}", {"peft_type": "NONE"}, {"r": 0}, {"r": "four"}, {"target_modules": "("},
    ],
    ids=str,
)  # fmt: skip
def test_an_unfitting_config_is_named(adapter_copy: Path, load_tiny_model: Callable[[], Any], changed: Any) -> None:
    whole = json.loads((adapter_copy / CONFIG_FILE).read_text())
    (adapter_copy / CONFIG_FILE).write_text(changed if isinstance(changed, str) else json.dumps(whole | changed))
    assert catch_adapter_error(load_tiny_model, adapter_copy).message.startswith(CONFIG_FILE)


@pytest.mark.parametrize(
    "changed",
    [{"target_modules": "nothing"}, {"target_modules": ["mlp"]}, {"trainable_token_indices": [10**9]}, {"r": 8}],
    ids=str,
)
def test_what_peft_cannot_load_is_one_line(
    adapter_copy: Path, load_tiny_model: Callable[[], Any], changed: Any
) -> None:
    whole = json.loads((adapter_copy / CONFIG_FILE).read_text())
    (adapter_copy / CONFIG_FILE).write_text(json.dumps(whole | changed))
    message = catch_adapter_error(load_tiny_model, adapter_copy).message
    assert message.startswith("PEFT cannot load it: ")
    assert "\n" not in message


def test_a_full_disk_leaves_the_old_adapter(
    adapter_copy: Path, tuned: Any, adapter_metadata: AdapterMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors has an error of its own for it."""
    from safetensors import SafetensorError

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    before = (adapter_copy / WEIGHTS_FILE).read_bytes()
    monkeypatch.setattr(peft_files, "save_file", full)
    with pytest.raises(LorgnetteError, match=r"cannot write: .*No space left"), atomic_folder(adapter_copy) as folder:
        peft_files.write_adapter(folder, get_adapter_state(tuned), FAMILY, LoraSettings(), adapter_metadata)
    assert (adapter_copy / WEIGHTS_FILE).read_bytes() == before


def test_names_from_before_transformers_4_52_are_converted(
    saved: Path, adapter_copy: Path, load_tiny_model: Callable[[], Any]
) -> None:
    """The tutorial's own checkpoint-62 has them: the decoder stood at `model.layers` then."""
    tensors = load_file(adapter_copy / WEIGHTS_FILE)
    renamed = {
        name.replace("model.language_model.layers.", "model.layers."): tensor for name, tensor in tensors.items()
    }
    assert not any("language_model" in name for name in renamed)
    save_file(renamed, adapter_copy / WEIGHTS_FILE)
    settings = json.loads((adapter_copy / CONFIG_FILE).read_text())
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    (adapter_copy / CONFIG_FILE).write_text(json.dumps(settings | {"target_modules": names}))
    new, old = (get_adapter_state(load_adapter(load_tiny_model(), folder)) for folder in (saved, adapter_copy))
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)
