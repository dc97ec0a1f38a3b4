"""Warming runs what will run, on the real widths and rows, and leaves nothing behind. (What it spares is measured.)"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import LANGUAGE_TARGETS
from lorgnette.engine import loading, warmup
from lorgnette.engine.fast import FastEngine
from lorgnette.features.image_features import PATCHES_AT_ONCE
from lorgnette.lora.flat_params import AdapterShape
from lorgnette.lora.metadata import Contract
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.models.qwen2_vl.config import TextShape, VisionShape, config_of
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.planning.memory import WARM_LAYERS
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Encoder
from lorgnette.types import Example, Picture, PictureGrid

CPU = torch.device("cpu")


def test_the_tower_is_called_with_as_much_as_it_will_be(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[VisionTower, Sequence[PictureGrid], Tensor]] = []

    def call(self: VisionTower, grids: Sequence[PictureGrid], patches: Tensor) -> Tensor:
        called.append((self, grids, patches))
        return patches

    monkeypatch.setattr(VisionTower, "__call__", call)
    shape = VisionShape.of(config_of(Checkpoint.at(tiny)))
    grids = [PictureGrid(Picture(tiny / f"{h}.png"), 1, h, 20, shape.merge) for h in (10, 30)]
    warmup.tower(shape, grids, CPU, torch.float32)
    ((tower, seen, patches),) = called
    assert (tower.shape.depth, tower.shape.embed) == (1, shape.embed)
    assert patches.shape == (sum(grid.h * grid.w for grid in seen), shape.patch_numbers)
    assert PATCHES_AT_ONCE - 30 * 20 < len(patches) <= PATCHES_AT_ONCE
    assert set(seen) == set(grids)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_decoder_runs_in_small(
    tiny: Path, contract: Contract, conversations: list[Example], monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """Forward and backward with dropout, forward without, through a middle layer and a last one."""
    checkpoint, encoder = Checkpoint.at(tiny), Encoder.of_folder(tiny, contract.encode)
    batch = pack([encoder.encode(example) for example in conversations], 10)
    features = loading.features_of(checkpoint, encoder.rule, CPU, torch.float32)
    shape = AdapterShape(TextShape.of(config_of(checkpoint)), LANGUAGE_TARGETS, 4, 2.0)
    engines: list[Any] = []
    run = FastEngine.warm

    def watched(self: FastEngine, batches: Any) -> Any:
        engines.append(self)
        return run(self, batches)

    monkeypatch.setattr(FastEngine, "warm", watched)
    warmup.decoder(shape, [batch], features, torch.float32, dropout=dropout, grouped=False)
    (engine,) = engines
    assert len(engine.decoder.layers) == WARM_LAYERS
    assert (engine.decoder.shape.hidden, engine.decoder.shape.vocab) == (shape.text.hidden, shape.text.vocab)
    assert engine._dropout == dropout
    assert engine.adapter.values.grad.isfinite().all()
