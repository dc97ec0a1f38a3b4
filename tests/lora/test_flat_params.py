"""The flat adapter is PEFT's: names, shapes, fresh values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LANGUAGE_TARGETS, Lora
from lorgnette.engine import peft_adapter
from lorgnette.engine.build_decoder import decoder_of
from lorgnette.lora.flat_params import GROUPS, AdapterShape, FlatAdapter
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.models.qwen2_vl.config import TextShape, config_of
from lorgnette.models.qwen2_vl.family import FAMILIES

CPU = torch.device("cpu")


@pytest.fixture
def shape(tiny: Path) -> AdapterShape:
    return AdapterShape(TextShape.of(config_of(Checkpoint.at(tiny))), LANGUAGE_TARGETS, 4, 2.0)


def test_names_and_shapes_are_pefts(shape: AdapterShape, tuned: Any) -> None:
    assert shape.sizes() == {name: tuple(p.shape) for name, p in peft_adapter.adapter_state(tuned).items()}


@pytest.mark.parametrize("targets", [LANGUAGE_TARGETS, ("q_proj", "down_proj")])
def test_a_fresh_adapter_is_pefts_bit_for_bit(
    shape: AdapterShape, loaded: Callable[[], Any], targets: tuple[Any, ...]
) -> None:
    shape = AdapterShape(shape.text, targets, 4, 2.0)
    theirs = peft_adapter.attach(loaded(), FAMILIES["qwen2_vl"], Lora(rank=4, alpha=8, targets=targets), seed=7)
    ours = FlatAdapter(shape, CPU)
    ours.take(FlatAdapter.drawn(shape, 7))
    state = peft_adapter.adapter_state(theirs)
    assert ours.named.keys() == state.keys()
    assert all(torch.equal(ours.named[name], p) for name, p in state.items())
    assert not torch.equal(FlatAdapter.drawn(shape, 8), ours.values)


def test_what_is_loaded_comes_back_and_is_a_copy(shape: AdapterShape, tuned: Any) -> None:
    flat, state = FlatAdapter(shape, CPU), peft_adapter.adapter_state(tuned)
    flat.load({name: p.detach() for name, p in state.items()})
    found = flat.on_cpu()
    assert all(torch.equal(found[name], p) for name, p in state.items())
    assert sum(t.numel() for t in found.values()) == flat.values.numel()
    flat.take(torch.zeros_like(flat.values))
    assert all(t.any() for t in found.values())


@pytest.mark.parametrize("targets", [LANGUAGE_TARGETS, ("q_proj", "v_proj", "up_proj")])
def test_attached_factors_lie_where_they_are_computed_with(
    tiny: Path, shape: AdapterShape, targets: tuple[Any, ...]
) -> None:
    """s·A of a group stacked, B in blocks on the diagonal, zero elsewhere; a change shows once it is spread."""
    shape = AdapterShape(shape.text, targets, 4, 2.0)
    decoder, flat = decoder_of(Checkpoint.at(tiny), shape, CPU, torch.float32), FlatAdapter(shape, CPU)
    spread = flat.attach(decoder)
    assert not any(matrix.weight[:, matrix.inputs :].any() for matrix in decoder.linears)
    torch.manual_seed(0)
    flat.take(torch.randn(flat.values.shape))
    before = [matrix.weight.clone() for matrix in decoder.linears]
    assert not any(weight[:, m.inputs :].any() for weight, m in zip(before, decoder.linears, strict=True))
    spread()
    for number, layer in enumerate(decoder.layers):
        for matrix, group in zip(layer.linears, GROUPS, strict=True):
            adapted = [target for target in group if target in targets]
            each = {f: [flat.named[shape.name(number, target, f)] for target in adapted] for f in "AB"}
            blocks = iter(each["B"])
            rows = [next(blocks) if t in targets else torch.zeros(shape.outputs(t), 0) for t in group]
            assert torch.equal(matrix.weight[:, matrix.inputs :], torch.block_diag(*rows))
            assert torch.equal(matrix._a, 2.0 * torch.cat(each["A"]) if adapted else torch.empty(0, matrix.inputs))
    for weight, matrix in zip(before, decoder.linears, strict=True):
        assert torch.equal(matrix.weight[:, : matrix.inputs], weight[:, : matrix.inputs])


def test_gradients_are_one_vector(tiny: Path, shape: AdapterShape) -> None:
    """What a matrix adds to its factors' gradients stands in `values.grad`, under PEFT's names."""
    decoder, flat = decoder_of(Checkpoint.at(tiny), shape, CPU, torch.float32), FlatAdapter(shape, CPU)
    flat.attach(decoder)
    factors = decoder.layers[1].gate_up.factors
    assert factors is not None
    factors.grad_a[4:].fill_(1.0)
    factors.grad_b[0].fill_(2.0)
    changed = {name: grad.unique().tolist() for name, grad in flat.named_grads.items() if grad.any()}
    assert changed == {shape.name(1, "up_proj", "A"): [1.0], shape.name(1, "gate_proj", "B"): [2.0]}
    assert flat.values.grad is not None
    assert flat.values.grad.sum() == 4 * 64 + 2 * 96 * 4
