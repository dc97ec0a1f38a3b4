"""The flat adapter is PEFT's: names, shapes, fresh values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LANGUAGE_TARGETS, Lora
from lorgnette.families import FAMILIES
from lorgnette.model import adapter
from lorgnette.model.build import decoder_of
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.flat import AdapterShape, FlatAdapter
from lorgnette.model.shapes import TextShape, config_of

CPU = torch.device("cpu")


@pytest.fixture
def shape(tiny: Path) -> AdapterShape:
    return AdapterShape(TextShape.of(config_of(Checkpoint.at(tiny))), LANGUAGE_TARGETS, 4, 2.0)


def test_names_and_shapes_are_pefts(shape: AdapterShape, tuned: Any) -> None:
    assert shape.sizes() == {name: tuple(p.shape) for name, p in adapter.adapter_state(tuned).items()}


@pytest.mark.parametrize("targets", [LANGUAGE_TARGETS, ("q_proj", "down_proj")])
def test_a_fresh_adapter_is_pefts_bit_for_bit(
    shape: AdapterShape, loaded: Callable[[], Any], targets: tuple[Any, ...]
) -> None:
    shape = AdapterShape(shape.text, targets, 4, 2.0)
    theirs = adapter.attach(loaded(), FAMILIES["qwen2_vl"], Lora(rank=4, alpha=8, targets=targets), seed=7)
    ours = FlatAdapter(shape, CPU)
    ours.take(FlatAdapter.drawn(shape, 7))
    state = adapter.adapter_state(theirs)
    assert ours.named.keys() == state.keys()
    assert all(torch.equal(ours.named[name], p) for name, p in state.items())
    assert not torch.equal(FlatAdapter.drawn(shape, 8), ours.values)


def test_what_is_loaded_comes_back_and_is_a_copy(shape: AdapterShape, tuned: Any) -> None:
    flat, state = FlatAdapter(shape, CPU), adapter.adapter_state(tuned)
    flat.load({name: p.detach() for name, p in state.items()})
    found = flat.on_cpu()
    assert all(torch.equal(found[name], p) for name, p in state.items())
    assert sum(t.numel() for t in found.values()) == flat.values.numel()


def test_attached_factors_follow_their_masters_when_spread(tiny: Path, shape: AdapterShape) -> None:
    flat = FlatAdapter(shape, CPU)
    layer = (decoder := decoder_of(Checkpoint.at(tiny), shape, CPU, torch.float32)).layers[1]
    spread = flat.attach(decoder)
    assert not layer.o.weight[:, layer.o.inputs :].any()
    flat.take(torch.randn(flat.values.shape))
    spread()
    assert torch.equal(layer.o.weight[:, layer.o.inputs :], flat.named[shape.name(1, "o_proj", "B")])
