"""Warming runs what will run, on the real widths and rows, and leaves nothing behind. (What it spares is measured.)"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import TARGET_MODULES
from lorgnette.engine import loading, warmup
from lorgnette.engine.fast import FastEngine
from lorgnette.features.image_features import MAX_PATCHES_PER_CALL
from lorgnette.lora.flat_params import AdapterShape
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig, load_hf_config
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.planning.memory import WARMUP_LAYERS
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, Image, ImageGrid

CPU = torch.device("cpu")


def test_the_tower_is_called_with_as_much_as_it_will_be(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[VisionTower, Sequence[ImageGrid], Tensor]] = []

    def call(self: VisionTower, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
        called.append((self, grids, patches))
        return patches

    monkeypatch.setattr(VisionTower, "__call__", call)
    shape = VisionConfig.from_hf_config(load_hf_config(BaseCheckpoint.from_folder(tiny)))
    grids = [ImageGrid(Image(tiny / f"{h}.png"), 1, h, 20, shape.merge_size) for h in (10, 30)]
    warmup.warm_up_tower(shape, grids, CPU, torch.float32)
    ((tower, seen, patches),) = called
    assert (tower.config.depth, tower.config.embed_dim) == (1, shape.embed_dim)
    assert patches.shape == (sum(grid.h * grid.w for grid in seen), shape.patch_dim)
    assert MAX_PATCHES_PER_CALL - 30 * 20 < len(patches) <= MAX_PATCHES_PER_CALL
    assert set(seen) == set(grids)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_decoder_runs_in_small(
    tiny: Path, contract: AdapterMetadata, conversations: list[Example], monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """Forward and backward with dropout, forward without, through a middle layer and a last one."""
    checkpoint, encoder = BaseCheckpoint.from_folder(tiny), Processor.from_folder(tiny, contract.processor)
    batch = pack([encoder.encode(example) for example in conversations], 10)
    features = loading.build_features(checkpoint, encoder.image_processor, CPU, torch.float32)
    shape = AdapterShape(TextConfig.from_hf_config(load_hf_config(checkpoint)), TARGET_MODULES, 4, 2.0)
    engines: list[Any] = []
    run = FastEngine.warmup

    def watched(self: FastEngine, batches: Any) -> Any:
        engines.append(self)
        return run(self, batches)

    monkeypatch.setattr(FastEngine, "warm", watched)
    warmup.warm_up_decoder(shape, [batch], features, torch.float32, dropout=dropout, group_by_image=False)
    (engine,) = engines
    assert len(engine.decoder.layers) == WARMUP_LAYERS
    assert (engine.decoder.shape.hidden, engine.decoder.shape.vocab) == (shape.text.hidden_size, shape.text.vocab_size)
    assert engine._dropout == dropout
    assert engine.adapter.values.grad.isfinite().all()
