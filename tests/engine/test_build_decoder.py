"""Every weight lies where the decoder computes with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.engine.build_decoder import empty_adapter_shape, load_decoder
from lorgnette.errors import LorgnetteError
from lorgnette.lora.flat_params import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, load_hf_config
from lorgnette.models.qwen2_vl.text_decoder import Decoder

CPU = torch.device("cpu")
STACKED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def read(folder: Path, *targets: Any) -> Decoder:
    checkpoint = BaseCheckpoint.from_folder(folder)
    return load_decoder(
        checkpoint,
        AdapterShape(TextConfig.from_hf_config(load_hf_config(checkpoint)), targets, 3, 1.0),
        CPU,
        torch.float32,
    )


def test_every_weight_is_transformers(tiny: Path, loaded: Callable[[], Any]) -> None:
    """Projections of one input are stacked, and what is adapted has its columns beside them."""
    decoder, weights = read(tiny, "q_proj", "v_proj", "up_proj"), loaded().model.language_model.state_dict()
    assert len(decoder.layers) == 2
    for i, layer in enumerate(decoder.layers):
        for matrix, names, columns in zip(layer.linears, STACKED, (6, 0, 3, 0), strict=True):
            found = [weights.pop(f"layers.{i}.{name}.weight") for name in names]
            assert torch.equal(matrix.weight[:, : matrix.in_features], torch.cat(found))
            assert matrix.ext_features == matrix.in_features + columns
        biases = [weights.pop(f"layers.{i}.{name}.bias") for name in STACKED[0]]
        assert torch.equal(layer.qkv_proj.bias, torch.cat(biases))
        assert torch.equal(layer.input_norm, weights.pop(f"layers.{i}.input_layernorm.weight"))
        assert torch.equal(layer.post_attention_norm, weights.pop(f"layers.{i}.post_attention_layernorm.weight"))
    assert torch.equal(decoder.norm, weights.pop("norm.weight"))
    assert torch.equal(decoder.embed_tokens, weights.pop("embed_tokens.weight"))
    assert decoder.lm_head is decoder.embed_tokens
    assert not weights, "nothing of transformers' is left over"


@pytest.fixture
def untied(tiny: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with norms that are not all 1 and an output layer of its own."""
    folder = shutil.copytree(tiny, tmp_path / "untied")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = load_file(folder / "model.safetensors")
    drawn = {n: torch.randn_like(t) for n, t in tensors.items() if "norm" in n}
    head = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file(tensors | drawn | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_norms_and_an_output_layer_have_places_of_their_own(untied: Path) -> None:
    decoder, weights = read(untied), load_file(untied / "model.safetensors")
    assert torch.equal(decoder.lm_head, weights["lm_head.weight"].float())
    assert torch.equal(decoder.embed_tokens, weights["model.embed_tokens.weight"].float())
    assert torch.equal(decoder.norm, weights["model.norm.weight"].float())
    for i, layer in enumerate(decoder.layers):
        assert torch.equal(layer.input_norm, weights[f"model.layers.{i}.input_layernorm.weight"].float())
        assert torch.equal(
            layer.post_attention_norm, weights[f"model.layers.{i}.post_attention_layernorm.weight"].float()
        )


def test_a_weight_that_is_not_there_is_named(untied: Path) -> None:
    tensors = load_file(untied / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, untied / "model.safetensors", {"format": "pt"})
    with pytest.raises(LorgnetteError, match=r"lm_head\.weight"):
        read(untied)


def test_no_two_matrices_share_a_salt_and_bare_has_no_columns(tiny: Path) -> None:
    checkpoint = BaseCheckpoint.from_folder(tiny)
    decoder = load_decoder(
        checkpoint, empty_adapter_shape(TextConfig.from_hf_config(load_hf_config(checkpoint))), CPU, torch.bfloat16
    )
    assert len({matrix.rng_stream for matrix in decoder.linears}) == len(list(decoder.linears)) == 8
    assert all(matrix.ext_features == matrix.in_features for matrix in decoder.linears)
    assert decoder.norm.dtype == torch.bfloat16
