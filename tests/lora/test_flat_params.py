"""The flat parameters equal PEFT's: names, shapes, initial values; the decoder computes with views of them."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.engine.loading import load_decoder
from lorgnette.engine.peft_engine import add_adapter, get_adapter_state
from lorgnette.lora import flat_params
from lorgnette.lora.flat_params import FlatLoraParams, group_factors
from lorgnette.models.adapter_shape import FUSED_PROJECTIONS, AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import FAMILIES
from tests.device_copies import copies_on_a_stream

CPU = torch.device("cpu")


@pytest.fixture
def shape(tiny: Path) -> AdapterShape:
    return AdapterShape(BaseCheckpoint.from_folder(tiny).load_text_config(), TARGET_MODULES, 4, 2.0)


def test_names_and_shapes_equal_pefts(shape: AdapterShape, tuned: Any) -> None:
    assert shape.factor_shapes() == {name: tuple(p.shape) for name, p in get_adapter_state(tuned).items()}


@pytest.mark.parametrize("targets", [TARGET_MODULES, ("q_proj", "down_proj")])
def test_initial_values_equal_pefts_bit_for_bit(
    shape: AdapterShape, load_tiny_model: Callable[[], Any], targets: tuple[Any, ...]
) -> None:
    shape = AdapterShape(shape.text, targets, 4, 2.0)
    peft_model = add_adapter(
        load_tiny_model(), FAMILIES["qwen2_vl"], LoraSettings(rank=4, alpha=8, target_modules=targets), seed=7
    )
    flat = FlatLoraParams(shape, CPU)
    flat.copy_from(FlatLoraParams.init_values(shape, 7))
    state = get_adapter_state(peft_model)
    assert flat.named_params.keys() == state.keys()
    assert all(torch.equal(flat.named_params[name], p) for name, p in state.items())
    assert not torch.equal(FlatLoraParams.init_values(shape, 8), flat.values)


def test_copy_to_cpu_returns_a_copy_of_the_loaded_state(shape: AdapterShape, tuned: Any) -> None:
    flat, state = FlatLoraParams(shape, CPU), get_adapter_state(tuned)
    flat.load_state_dict({name: p.detach() for name, p in state.items()})
    copy = flat.copy_to_cpu()
    assert all(torch.equal(copy[name], p) for name, p in state.items())
    assert sum(t.numel() for t in copy.values()) == flat.values.numel()
    flat.copy_from(torch.zeros_like(flat.values))
    assert all(t.any() for t in copy.values())


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("piece_bytes", [4, 2048, 2**20])
def test_a_started_copy_is_equal_and_needs_the_wait(
    shape: AdapterShape, piece_bytes: int, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of one factor, of some, and in one."""
    monkeypatch.setattr(flat_params, "PINNED_PIECE_BYTES", piece_bytes)
    flat = FlatLoraParams(shape, CPU)
    torch.manual_seed(0)
    flat.copy_from(torch.randn(flat.values.shape))
    expected = flat.copy_to_cpu()
    with copies_on_a_stream(is_late=is_late) as stream:
        flat.pin_host_memory()
        wait = flat.start_copy()
        assert bool(stream.launched) is is_late
        copy = wait()
        assert not stream.launched
    assert list(copy) == list(expected)
    assert all(torch.equal(copy[name], tensor) for name, tensor in expected.items())
    flat.copy_from(torch.zeros_like(flat.values))
    assert all(tensor.any() for tensor in copy.values())


@pytest.mark.parametrize("kind", ["cpu", "little memory"])
def test_otherwise_a_copy_is_made_at_once(shape: AdapterShape, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, and where pinned memory would be too much for the machine."""
    monkeypatch.setattr(flat_params, "allocate_pinned_memory", None)
    monkeypatch.setattr(flat_params, "may_pin", lambda num_bytes: False)
    flat = FlatLoraParams(shape, CPU)
    flat.copy_from(torch.ones_like(flat.values))
    with nullcontext() if kind == "cpu" else copies_on_a_stream(is_late=True):
        flat.pin_host_memory()
        wait = flat.start_copy()
    flat.copy_from(torch.zeros_like(flat.values))
    assert all(bool((tensor == 1).all()) for tensor in wait().values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_started_copy_comes_before_the_next_update(shape: AdapterShape) -> None:
    flat = FlatLoraParams(shape, torch.device("cuda"))
    flat.copy_from(torch.ones_like(flat.values))
    torch.cuda._sleep(10**8)
    wait = flat.start_copy()
    assert not torch.cuda.current_stream().query(), "the host did not wait"
    flat.copy_from(torch.zeros_like(flat.values))
    assert all(bool((tensor == 1).all()) and tensor.is_pinned() for tensor in wait().values())


@pytest.mark.parametrize("max_length", [1, 700, 10**9])
def test_factors_are_grouped_in_their_order(shape: AdapterShape, max_length: int) -> None:
    groups = group_factors(shape, max_length)
    assert [item for group in groups for item in group.items()] == list(shape.factor_shapes().items())
    lengths = [[math.prod(size) for size in group.values()] for group in groups]
    assert all(len(of_group) == 1 or sum(of_group) <= max_length for of_group in lengths)
    assert all(sum(first) + second[0] > max_length for first, second in pairwise(lengths))


@pytest.mark.parametrize("targets", [TARGET_MODULES, ("q_proj", "v_proj", "up_proj")])
def test_attached_factors_are_copied_into_the_fused_matrices(
    tiny: Path, shape: AdapterShape, targets: tuple[Any, ...]
) -> None:
    """scale·A of a group stacked, B in blocks on the diagonal, zero elsewhere; changes arrive with the weight copy."""
    shape = AdapterShape(shape.text, targets, 4, 2.0)
    decoder, flat = (
        load_decoder(BaseCheckpoint.from_folder(tiny), shape, CPU, torch.float32),
        FlatLoraParams(shape, CPU),
    )
    weight_copy = flat.attach(decoder)
    assert not any(linear.weight[:, linear.in_features :].any() for linear in decoder.linears)
    torch.manual_seed(0)
    flat.copy_from(torch.randn(flat.values.shape))
    before = [linear.weight.clone() for linear in decoder.linears]
    assert not any(
        weight[:, linear.in_features :].any() for weight, linear in zip(before, decoder.linears, strict=True)
    )
    weight_copy()
    for number, layer in enumerate(decoder.layers):
        for linear, group in zip(layer.linears, FUSED_PROJECTIONS, strict=True):
            adapted = [target for target in group if target in targets]
            factors = {f: [flat.named_params[shape.format_name(number, target, f)] for target in adapted] for f in "AB"}
            blocks = iter(factors["B"])
            rows = [next(blocks) if t in targets else torch.zeros(shape.out_features(t), 0) for t in group]
            assert torch.equal(linear.weight[:, linear.in_features :], torch.block_diag(*rows))
            assert torch.equal(
                linear._a, 2.0 * torch.cat(factors["A"]) if adapted else torch.empty(0, linear.in_features)
            )
    for weight, linear in zip(before, decoder.linears, strict=True):
        assert torch.equal(linear.weight[:, : linear.in_features], weight[:, : linear.in_features])


def test_gradients_are_one_vector(tiny: Path, shape: AdapterShape) -> None:
    """The gradients of a linear layer's factors are views of `values.grad` under PEFT's names."""
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


@pytest.mark.parametrize("targets", [TARGET_MODULES, ("k_proj", "q_proj", "down_proj"), ("down_proj", "up_proj"), ()])
def test_initial_values_drawn_together_equal_those_drawn_one_by_one(tiny: Path, targets: tuple[Any, ...]) -> None:
    text = replace(BaseCheckpoint.from_folder(tiny).load_text_config(), num_layers=5)
    shape = AdapterShape(text, targets, 3, 1.0)
    generator, expected = torch.Generator().manual_seed(9), FlatLoraParams(shape, CPU)
    for layer in range(text.num_layers):
        for target in shape.select_adapted(TARGET_MODULES):
            a, b = (expected.named_params[shape.format_name(layer, target, factor)] for factor in "AB")
            torch.empty(a.numel() + b.numel()).uniform_(generator=generator)
            a.uniform_(-1 / math.sqrt(a.shape[1]), 1 / math.sqrt(a.shape[1]), generator=generator)
    assert torch.equal(FlatLoraParams.init_values(shape, 9), expected.values)
    if targets:
        assert not torch.equal(FlatLoraParams.init_values(shape, 8), expected.values)
