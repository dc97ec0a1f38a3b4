"""The reference engine's NF4 layers compute with bitsandbytes' numbers, and train as plain layers do."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from safetensors.torch import load_file, save_file
from tiny_models import dequantize_with_bitsandbytes, write_nf4_checkpoint
from torch import nn

from lorgnette.config import LoraSettings
from lorgnette.engine.nf4_linear import Nf4Linear
from lorgnette.engine.peft_engine import add_adapter, load_base_model
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.kernels import NF4_BLOCK_SIZE
from lorgnette.kernels.nf4 import NestedAbsmax, Nf4Matrix, dequantize_nf4
from lorgnette.models import quantization
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.family import convert_weight_name
from lorgnette.models.quantization import STATE

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LORA = LoraSettings(rank=4, dropout=0.0)


@pytest.fixture(scope="module")
def stored(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nf4_checkpoint(tmp_path_factory.mktemp("nf4") / "model", tiny)


def list_nf4(model: Any) -> dict[str, Nf4Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Nf4Linear)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_setting_quantizes_the_projections(tiny: Path, dtype: torch.dtype) -> None:
    checkpoint = BaseCheckpoint.from_folder(tiny).quantize("nf4")
    plain, model = (
        load_base_model(BaseCheckpoint.from_folder(tiny), CPU, dtype),
        load_base_model(checkpoint, CPU, dtype),
    )
    layers, weights = list_nf4(model), plain.state_dict()
    assert sorted(layers) == sorted(checkpoint.list_quantized_modules())
    for name, layer in layers.items():
        packed, state = quantize_4bit(weights[f"{name}.weight"], quant_type="nf4", compress_statistics=True)
        expected = dequantize_with_bitsandbytes(packed, state)
        assert torch.equal(layer.dequantize(), expected)
        assert layer.dequantize().dtype == dtype
    others = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] not in layers}
    assert others
    assert all(torch.equal(tensor, weights[name]) for name, tensor in others.items() if ".weight." not in name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_stored_checkpoint_is_read_as_it_is(stored: Path, dtype: torch.dtype) -> None:
    """Its file leaves out other modules than its config.json says, and its numbers are not rounded to bf16 first."""
    model, tensors = (
        load_base_model(BaseCheckpoint.from_folder(stored), CPU, dtype),
        load_file(stored / "model.safetensors"),
    )
    parts = {convert_weight_name(name): tensor for name, tensor in tensors.items()}
    layers = list_nf4(model)
    assert "model.visual.blocks.0.attn.qkv" in layers
    tower_dtype = torch.float32 if dtype == torch.float16 else dtype
    assert {p.dtype for p in model.parameters()} == {dtype, tower_dtype, torch.uint8}
    for name, layer in layers.items():
        start = f"{name}.weight"
        stats = {key.removeprefix(f"{start}."): part for key, part in parts.items() if key.startswith(f"{start}.")}
        state = QuantState.from_dict(stats, device=CPU)
        state.dtype = tower_dtype if ".visual." in name else dtype
        assert torch.equal(layer.dequantize(), dequantize_with_bitsandbytes(parts[start], state))


@pytest.mark.usefixtures("wrong_bitsandbytes")
@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 64), (8, 96), (5, 34)])
def test_blocks_that_go_on_in_the_next_row_have_their_scale(
    shape: tuple[int, int], dtype: torch.dtype, is_nested: bool
) -> None:
    """Where bitsandbytes has wrong numbers for a matrix."""
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-2, 0, shape[0])[:, None]
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=is_nested)
    linear = Linear4bit(shape[1], shape[0], bias=False)
    linear.weight = Params4bit(packed, quant_state=state, bnb_quantized=True, requires_grad=False)
    actual = Nf4Linear.from_linear(linear, dtype).dequantize()
    nested = NestedAbsmax(state.state2.code, state.state2.absmax, state.offset.view(1)) if is_nested else None
    expected = torch.empty(shape, dtype=dtype)
    dequantize_nf4(Nf4Matrix(shape, packed.flatten(), state.absmax, nested), expected)
    assert actual.shape == shape
    assert torch.equal(actual, expected)
    is_right = torch.equal(dequantize_4bit(packed, state), expected)  # of the matrix
    assert is_right == (shape[1] % NF4_BLOCK_SIZE == 0)


def pack_state(tensors: dict[str, torch.Tensor], name: str, **changed: object) -> torch.Tensor:
    values = json.loads(bytes(tensors[f"{name}.{STATE}"].tolist())) | changed
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("part", "change", "misfit"),
    [
        ("", lambda t, n: t[n][:10], "its bytes of another size or dtype"),
        (".absmax", lambda t, n: t[f"{n}.absmax"][:3], "absmax of another size or dtype"),
        (".nested_absmax", lambda t, n: None, "absmax of another size or dtype"),
        (".nested_quant_map", lambda t, n: torch.zeros(4), "nested_quant_map of another size"),
        (f".{STATE}", lambda t, n: pack_state(t, n, shape=[32, 64]), r"the shape \[32, 64\], not \[64, 64\]"),
        (f".{STATE}", lambda t, n: pack_state(t, n, blocksize=128), "the type nf4 in blocks of 128"),
        (f".{STATE}", lambda t, n: pack_state(t, n, quant_type="fp4"), "the type fp4"),
        (f".{STATE}", lambda t, n: pack_state(t, n, nested_offset=math.nan), "an offset that is not finite"),
        (f".{STATE}", lambda t, n: torch.ones(3, dtype=torch.uint8), "issues during automatic conversion"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(
    stored: Path, tmp_path: Path, part: str, change: Callable[..., torch.Tensor | None], misfit: str
) -> None:
    """bitsandbytes would read memory beyond them, or take them for other numbers."""
    folder = shutil.copytree(stored, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    changed = tensors | {name + part: change(tensors, name)}
    save_file({key: t.clone() for key, t in changed.items() if t is not None}, folder / "model.safetensors")
    with pytest.raises(LorgnetteError, match=f"weights cannot be loaded: .*{misfit}") as caught:
        load_base_model(BaseCheckpoint.from_folder(folder), CPU, torch.float32)
    assert caught.value.where == str(folder)


def make_pair(tiny: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model with NF4 layers, and one whose plain layers have the dequantized weights; both with the same adapter."""
    checkpoint = BaseCheckpoint.from_folder(tiny)
    ours, plain = load_base_model(checkpoint.quantize("nf4"), CPU, dtype), load_base_model(checkpoint, CPU, dtype)
    for name, layer in list_nf4(ours).items():
        plain.get_submodule(name).weight = nn.Parameter(layer.dequantize(), requires_grad=False)
    models = [add_adapter(model, checkpoint.family, LORA, seed=0) for model in (ours, plain)]
    for model in models:
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05)
    return models[0], models[1]


def compute(model: Any, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=torch.arange(5, 25)[None]).logits
    logits.float().logsumexp(-1).sum().backward()
    return logits, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_products_and_gradients_are_those_of_plain_layers(tiny: Path, dtype: torch.dtype) -> None:
    ours, plain = make_pair(tiny, dtype)
    (logits, gradients), (expected, expected_gradients) = compute(ours, dtype), compute(plain, dtype)
    assert torch.equal(logits, expected)
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in gradients)
    base = load_base_model(BaseCheckpoint.from_folder(tiny), CPU, dtype)  # the control: weights that are not quantized
    with torch.no_grad():
        assert not torch.equal(base(input_ids=torch.arange(5, 25)[None]).logits, expected)


def test_without_bitsandbytes_it_is_said(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="the reference engine needs bitsandbytes") as caught:
        load_base_model(BaseCheckpoint.from_folder(tiny).quantize("nf4"), CPU, torch.float32)
    assert "pip install bitsandbytes" in str(caught.value.hint)
