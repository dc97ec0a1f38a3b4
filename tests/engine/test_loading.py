"""Each weight is where the decoder computes with it, and the loaded model gives the reference engine's losses."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.config import TARGET_MODULES
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import (
    allocate_decoder,
    build_features,
    explain_unsupported_inference,
    load_decoder,
    load_decoder_with_adapters,
    load_fast_model,
)
from lorgnette.engine.peft_engine import ReferenceEngine, load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_config import CONFIG_FILE
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.text_decoder import Decoder
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch

CPU = torch.device("cpu")
STACKED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def load(folder: Path, *targets: Any) -> Decoder:
    checkpoint = BaseCheckpoint.from_folder(folder)
    text = checkpoint.load_text_config()
    return load_decoder(checkpoint, AdapterShape(text, targets, 3, 1.0), CPU, torch.float32)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_weights_equal_transformers(tiny_family: Callable[..., Path], model_type: str) -> None:
    """Projections of one input are stacked; adapted ones have extra columns. Qwen3-VL has norms of heads, no biases."""
    folder = tiny_family(model_type)
    model = load_base_model(BaseCheckpoint.from_folder(folder), CPU, torch.float32)
    decoder, weights = load(folder, "q_proj", "v_proj", "up_proj"), model.model.language_model.state_dict()
    assert len(decoder.layers) == 4
    for i, layer in enumerate(decoder.layers):
        for linear, names, columns in zip(layer.linears, STACKED, (6, 0, 3, 0), strict=True):
            stacked = torch.cat([weights.pop(f"layers.{i}.{name}.weight") for name in names])
            assert torch.equal(linear.load_weight()[:, : linear.in_features], stacked)
            assert linear.ext_features == linear.in_features + columns
        if layer.qkv_proj.bias is not None:
            biases = [weights.pop(f"layers.{i}.{name}.bias") for name in STACKED[0]]
            assert torch.equal(layer.qkv_proj.bias, torch.cat(biases))
        for name, norm in layer.norms.items():
            assert torch.equal(norm, weights.pop(f"layers.{i}.{name}.weight"))
        assert torch.equal(layer.norms["input_layernorm"], layer.input_norm)
        assert torch.equal(layer.norms["post_attention_layernorm"], layer.post_attention_norm)
    assert torch.equal(decoder.norm, weights.pop("norm.weight"))
    assert torch.equal(decoder.embed_tokens, weights.pop("embed_tokens.weight"))
    assert decoder.lm_head is decoder.embed_tokens
    assert not weights, "every weight of transformers' model is used"


@pytest.fixture
def untied(tiny: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with random norms and its own output layer."""
    folder = shutil.copytree(tiny, tmp_path / "untied")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = load_file(folder / "model.safetensors")
    norms = {name: torch.randn_like(tensor) for name, tensor in tensors.items() if "norm" in name}
    lm_head = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file(tensors | norms | {"lm_head.weight": lm_head}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_norms_and_an_untied_output_layer_are_loaded(untied: Path) -> None:
    decoder, weights = load(untied), load_file(untied / "model.safetensors")
    assert torch.equal(decoder.lm_head, weights["lm_head.weight"].float())
    assert torch.equal(decoder.embed_tokens, weights["model.embed_tokens.weight"].float())
    assert torch.equal(decoder.norm, weights["model.norm.weight"].float())
    for i, layer in enumerate(decoder.layers):
        post_attention_norm = weights[f"model.layers.{i}.post_attention_layernorm.weight"]
        assert torch.equal(layer.input_norm, weights[f"model.layers.{i}.input_layernorm.weight"].float())
        assert torch.equal(layer.post_attention_norm, post_attention_norm.float())


def test_a_missing_weight_is_named(untied: Path) -> None:
    tensors = load_file(untied / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, untied / "model.safetensors", {"format": "pt"})
    with pytest.raises(LorgnetteError, match=r"lm_head\.weight"):
        load(untied)


def test_rng_streams_differ_and_an_empty_adapter_has_no_columns(tiny: Path) -> None:
    checkpoint = BaseCheckpoint.from_folder(tiny)
    shape = AdapterShape.empty(checkpoint.load_text_config())
    decoder = load_decoder(checkpoint, shape, CPU, torch.bfloat16)
    assert len({linear.rng_stream for linear in decoder.linears}) == len(list(decoder.linears)) == 8
    assert all(linear.ext_features == linear.in_features for linear in decoder.linears)
    assert decoder.norm.dtype == torch.bfloat16


@pytest.fixture
def batch(tiny: Path, adapter_metadata: AdapterMetadata, conversations: list[Example]) -> PackedBatch:
    processor = Processor.from_folder(tiny, adapter_metadata.processor)
    return pack([processor.encode(example) for example in conversations], 10)


@pytest.fixture
def features(tiny: Path, adapter_metadata: AdapterMetadata, batch: PackedBatch) -> Features:
    image_processor = Processor.from_folder(tiny, adapter_metadata.processor).image_processor
    features = build_features(BaseCheckpoint.from_folder(tiny), image_processor, CPU, torch.float32)
    assert not features.prepare(batch.grids)
    return features


def test_a_saved_adapter_gives_the_losses_of_the_reference_engine(
    tiny: Path, saved: Path, tuned: Any, adapter_metadata: AdapterMetadata, features: Features, batch: PackedBatch
) -> None:
    model = load_fast_model(BaseCheckpoint.from_folder(tiny), SavedAdapter.load(saved), features, torch.float32)
    assert model.adapter is not None
    image_processor = Processor.from_folder(tiny, adapter_metadata.processor).image_processor
    reference_features = Features(HfVisionTower(tuned.get_base_model()), image_processor, is_live=False)
    reference_features.prepare(batch.grids)
    reference = ReferenceEngine(tuned.eval(), reference_features)
    with torch.no_grad():
        expected = reference.compute_label_losses(batch)
        with tuned.disable_adapter():
            base = reference.compute_label_losses(batch)
    losses = FastEngine(model.decoder, model.adapter, features, dropout=0.5).compute_label_losses(batch)
    torch.testing.assert_close(losses, expected, rtol=0, atol=2e-5)
    assert (losses - base).abs().max() > 1e-2  # negative control: the base model's losses differ


def test_a_base_model_has_no_adapter(tiny: Path, features: Features) -> None:
    assert load_fast_model(BaseCheckpoint.from_folder(tiny), None, features, torch.float32).adapter is None


def test_an_unsupported_adapter_is_explained(tiny: Path, saved: Path, tmp_path: Path) -> None:
    checkpoint, folder = BaseCheckpoint.from_folder(tiny), shutil.copytree(saved, tmp_path / "copy")
    assert explain_unsupported_inference(checkpoint, None) is None
    assert explain_unsupported_inference(checkpoint, SavedAdapter.load(saved)) is None
    (folder / CONFIG_FILE).write_text(json.dumps(json.loads((folder / CONFIG_FILE).read_text()) | {"use_dora": True}))
    assert "use_dora" in str(explain_unsupported_inference(checkpoint, SavedAdapter.load(folder)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_adapter_without_masters_gives_the_same_matrices(
    tiny: Path, saved: Path, features: Features, dtype: torch.dtype
) -> None:
    """So a served answer is the one of `predict`, bit for bit. (Several: inference/test_continuous_batch.py.)"""
    checkpoint, adapter = BaseCheckpoint.from_folder(tiny), SavedAdapter.load(saved)
    decoder, ranks = load_decoder_with_adapters(checkpoint, [adapter], CPU, dtype)
    assert ranks == (adapter.config["r"],)
    expected = load_fast_model(checkpoint, adapter, features, dtype).decoder
    for linear, other in zip(decoder.linears, expected.linears, strict=True):
        assert torch.equal(linear.load_weight(), other.load_weight())
        x_ext = torch.ones(1, linear.ext_features, dtype=dtype)
        assert torch.equal(linear.forward(x_ext), other.forward(x_ext))
        assert linear.ext_features == linear.in_features or not torch.equal(
            linear.forward(x_ext), linear.forward(x_ext, use_adapter=False)
        )  # negative control
    assert load_decoder_with_adapters(checkpoint, [], CPU, dtype)[1] == ()


def test_an_adapter_that_would_spoil_its_neighbors_is_refused(tiny: Path, saved: Path) -> None:
    checkpoint, adapter = BaseCheckpoint.from_folder(tiny), SavedAdapter.load(saved)
    for value, dtype in ((torch.inf, torch.float32), (1e5, torch.float16)):
        adapter.state[max(adapter.state)][0, 0] = value
        with pytest.raises(LorgnetteError, match=f"infinite or not a number in {str(dtype)[6:]}") as error:
            load_decoder_with_adapters(checkpoint, [SavedAdapter.load(saved), adapter], CPU, dtype)
    assert str(saved) in str(error.value)


def test_the_matrices_of_all_layers_are_in_one_piece_of_memory(tiny: Path) -> None:
    """They are aligned, and no two overlap."""
    text = BaseCheckpoint.from_folder(tiny).load_text_config()
    decoder, _ = allocate_decoder(AdapterShape(text, TARGET_MODULES, 4, 1.0), CPU, torch.float32)
    tensors = [tensor for linear in decoder.linears for tensor in (linear.weight, linear._a)]
    tensors += [linear.bias for linear in decoder.linears if linear.bias is not None]
    tensors += [norm for layer in decoder.layers for norm in layer.norms.values()]
    places = sorted((tensor.storage_offset(), tensor.numel()) for tensor in tensors)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert len({start for start, _ in places}) == len(tensors) == text.num_layers * (2 * 4 + 1 + 2)
    assert all(start % 256 == 0 for start, _ in places)
    assert all(start + count <= after for (start, count), (after, _) in pairwise(places))
    size = tensors[0].untyped_storage().nbytes() // 4
    assert 0 <= size - sum(places[-1]) < 256, "nothing is left over"
