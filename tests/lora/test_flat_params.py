"""The flat adapter is PEFT's: names, shapes, fresh values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.engine import peft_adapter
from lorgnette.engine.build_decoder import load_decoder
from lorgnette.lora.flat_params import FUSED_PROJECTIONS, AdapterShape, FlatLoraParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, load_hf_config
from lorgnette.models.qwen2_vl.family import FAMILIES

CPU = torch.device("cpu")


@pytest.fixture
def shape(tiny: Path) -> AdapterShape:
    return AdapterShape(
        TextConfig.from_hf_config(load_hf_config(BaseCheckpoint.from_folder(tiny))), TARGET_MODULES, 4, 2.0
    )


def test_names_and_shapes_are_pefts(shape: AdapterShape, tuned: Any) -> None:
    assert shape.factor_shapes() == {name: tuple(p.shape) for name, p in peft_adapter.get_adapter_state(tuned).items()}


@pytest.mark.parametrize("targets", [TARGET_MODULES, ("q_proj", "down_proj")])
def test_a_fresh_adapter_is_pefts_bit_for_bit(
    shape: AdapterShape, loaded: Callable[[], Any], targets: tuple[Any, ...]
) -> None:
    shape = AdapterShape(shape.text, targets, 4, 2.0)
    theirs = peft_adapter.add_adapter(
        loaded(), FAMILIES["qwen2_vl"], LoraSettings(rank=4, alpha=8, target_modules=targets), seed=7
    )
    ours = FlatLoraParams(shape, CPU)
    ours.copy_from(FlatLoraParams.init_values(shape, 7))
    state = peft_adapter.get_adapter_state(theirs)
    assert ours.named_params.keys() == state.keys()
    assert all(torch.equal(ours.named_params[name], p) for name, p in state.items())
    assert not torch.equal(FlatLoraParams.init_values(shape, 8), ours.values)


def test_what_is_loaded_comes_back_and_is_a_copy(shape: AdapterShape, tuned: Any) -> None:
    flat, state = FlatLoraParams(shape, CPU), peft_adapter.get_adapter_state(tuned)
    flat.load_state_dict({name: p.detach() for name, p in state.items()})
    found = flat.copy_to_cpu()
    assert all(torch.equal(found[name], p) for name, p in state.items())
    assert sum(t.numel() for t in found.values()) == flat.values.numel()
    flat.copy_from(torch.zeros_like(flat.values))
    assert all(t.any() for t in found.values())


@pytest.mark.parametrize("targets", [TARGET_MODULES, ("q_proj", "v_proj", "up_proj")])
def test_attached_factors_lie_where_they_are_computed_with(
    tiny: Path, shape: AdapterShape, targets: tuple[Any, ...]
) -> None:
    """s·A of a group stacked, B in blocks on the diagonal, zero elsewhere; a change shows once it is spread."""
    shape = AdapterShape(shape.text, targets, 4, 2.0)
    decoder, flat = (
        load_decoder(BaseCheckpoint.from_folder(tiny), shape, CPU, torch.float32),
        FlatLoraParams(shape, CPU),
    )
    spread = flat.attach(decoder)
    assert not any(matrix.weight[:, matrix.in_features :].any() for matrix in decoder.linears)
    torch.manual_seed(0)
    flat.copy_from(torch.randn(flat.values.shape))
    before = [matrix.weight.clone() for matrix in decoder.linears]
    assert not any(weight[:, m.in_features :].any() for weight, m in zip(before, decoder.linears, strict=True))
    spread()
    for number, layer in enumerate(decoder.layers):
        for matrix, group in zip(layer.linears, FUSED_PROJECTIONS, strict=True):
            adapted = [target for target in group if target in targets]
            each = {f: [flat.named_params[shape.format_name(number, target, f)] for target in adapted] for f in "AB"}
            blocks = iter(each["B"])
            rows = [next(blocks) if t in targets else torch.zeros(shape.out_features(t), 0) for t in group]
            assert torch.equal(matrix.weight[:, matrix.in_features :], torch.block_diag(*rows))
            assert torch.equal(matrix._a, 2.0 * torch.cat(each["A"]) if adapted else torch.empty(0, matrix.in_features))
    for weight, matrix in zip(before, decoder.linears, strict=True):
        assert torch.equal(matrix.weight[:, : matrix.in_features], weight[:, : matrix.in_features])


def test_gradients_are_one_vector(tiny: Path, shape: AdapterShape) -> None:
    """What a matrix adds to its factors' gradients stands in `values.grad`, under PEFT's names."""
    decoder, flat = (
        load_decoder(BaseCheckpoint.from_folder(tiny), shape, CPU, torch.float32),
        FlatLoraParams(shape, CPU),
    )
    flat.attach(decoder)
    factors = decoder.layers[1].gate_up_proj.factors
    assert factors is not None
    factors.grad_a[4:].fill_(1.0)
    factors.grad_b[0].fill_(2.0)
    changed = {name: grad.unique().tolist() for name, grad in flat.named_grads.items() if grad.any()}
    assert changed == {shape.format_name(1, "up_proj", "A"): [1.0], shape.format_name(1, "gate_proj", "B"): [2.0]}
    assert flat.values.grad is not None
    assert flat.values.grad.sum() == 4 * 64 + 2 * 96 * 4
