"""Every weight lies where the decoder computes with it."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from lorgnette.model.build import bare, decoder_of
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.flat import AdapterShape
from lorgnette.model.shapes import TextShape, config_of

CPU = torch.device("cpu")
STACKED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def test_projections_of_one_input_are_stacked(tiny: Path) -> None:
    checkpoint = Checkpoint.at(tiny)
    text = TextShape.of(config_of(checkpoint))
    decoder = decoder_of(checkpoint, AdapterShape(text, ("q_proj", "v_proj", "up_proj"), 3, 1.0), CPU, torch.float32)
    weights = saved(tiny)
    assert len(decoder.layers) == 2
    for i, layer in enumerate(decoder.layers):
        for matrix, names, columns in zip(layer.linears, STACKED, (6, 0, 3, 0), strict=True):
            found = [weights[f"layers.{i}.{name}.weight"] for name in names]
            assert torch.equal(matrix.weight[:, : matrix.inputs], torch.cat(found))
            assert matrix.width == matrix.inputs + columns
        biases = [weights[f"layers.{i}.{name}.bias"] for name in STACKED[0]]
        assert torch.equal(layer.qkv.bias, torch.cat(biases))
        assert torch.equal(layer.norm1, weights[f"layers.{i}.input_layernorm.weight"])
        assert torch.equal(layer.norm2, weights[f"layers.{i}.post_attention_layernorm.weight"])
    assert torch.equal(decoder.embedding, weights["embed_tokens.weight"])
    assert decoder.head is decoder.embedding


def test_no_two_matrices_share_a_salt_and_bare_has_no_columns(tiny: Path) -> None:
    checkpoint = Checkpoint.at(tiny)
    decoder = decoder_of(checkpoint, bare(TextShape.of(config_of(checkpoint))), CPU, torch.bfloat16)
    assert len({matrix.salt for matrix in decoder.linears}) == len(list(decoder.linears)) == 8
    assert all(matrix.width == matrix.inputs for matrix in decoder.linears)
    assert decoder.norm.dtype == torch.bfloat16


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The language model's weights by the name they have in it."""
    found = {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    return {name.rpartition("model.")[2].removeprefix("language_model."): t for name, t in found.items()}
