"""The warm-up runs small models with the real widths and numbers of tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import TARGET_MODULES
from lorgnette.engine import loading, warmup
from lorgnette.engine.fast import FastEngine
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import VisionConfig
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.planning.limits import MAX_PATCHES_PER_CALL, WARMUP_LAYERS
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, Image, ImageGrid

CPU = torch.device("cpu")


def test_the_tower_runs_on_a_full_call(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[VisionTower, Sequence[ImageGrid], Tensor]] = []

    def call(self: VisionTower, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
        calls.append((self, grids, patches))
        return patches

    monkeypatch.setattr(VisionTower, "__call__", call)
    config = VisionConfig.from_hf_config(BaseCheckpoint.from_folder(tiny).load_hf_config())
    grids = [ImageGrid(Image(tiny / f"{h}.png"), 1, h, 20, config.merge_size) for h in (10, 30)]
    warmup.warm_up_tower(config, grids, CPU, torch.float32)
    ((tower, call_grids, patches),) = calls
    assert (tower.config.depth, tower.config.embed_dim) == (1, config.embed_dim)
    assert patches.shape == (sum(grid.h * grid.w for grid in call_grids), config.patch_dim)
    assert MAX_PATCHES_PER_CALL - 30 * 20 < len(patches) <= MAX_PATCHES_PER_CALL
    assert set(call_grids) == set(grids)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_small_decoder_runs_as_in_training_and_evaluation(
    tiny: Path, contract: AdapterMetadata, conversations: list[Example], monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """Forward and backward with dropout, forward without, through a middle and a last layer."""
    checkpoint, processor = BaseCheckpoint.from_folder(tiny), Processor.from_folder(tiny, contract.processor)
    batch = pack([processor.encode(example) for example in conversations], 10)
    features = loading.build_features(checkpoint, processor.image_processor, CPU, torch.float32)
    shape = AdapterShape(checkpoint.load_text_config(), TARGET_MODULES, 4, 2.0)
    engines: list[Any] = []
    run = FastEngine.warmup

    def record(self: FastEngine, batches: Any) -> Any:
        engines.append(self)
        return run(self, batches)

    monkeypatch.setattr(FastEngine, "warmup", record)
    warmup.warm_up_decoder(shape, [batch], features, torch.float32, dropout=dropout, group_by_image=False)
    (engine,) = engines
    assert len(engine.decoder.layers) == WARMUP_LAYERS
    assert engine.decoder.config.hidden_size == shape.text.hidden_size
    assert engine.decoder.config.vocab_size == shape.text.vocab_size
    assert engine._dropout == dropout
    assert engine.adapter.values.grad.isfinite().all()
