"""The opened engine has the adapter's initial or resumed values; warm-ups run small models on real widths."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import build_features
from lorgnette.engine.open_for_training import open_for_training, warm_up_decoder, warm_up_tower
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import VisionTower, find_tower_class
from lorgnette.models.registry import parse_configs
from lorgnette.planning.limits import MAX_PATCHES_PER_CALL, WARMUP_LAYERS
from lorgnette.planning.memory import MemoryFit
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, Image, ImageGrid

CPU = torch.device("cpu")


@pytest.mark.parametrize(("resumed", "in_turn"), [(False, False), (True, True)])
def test_the_adapter_is_initialized_or_resumed(
    tiny: Path,
    saved: Path,
    adapter_metadata: AdapterMetadata,
    conversations: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    resumed: bool,
    in_turn: bool,
) -> None:
    """And in turn, the decoder is loaded only once its engine is waited for: the tower's memory is free again."""
    loads: list[Path] = []
    module = import_module("lorgnette.engine.open_for_training")
    load, capture = module.load_decoder, FastEngine.capture_ahead

    def record_load(checkpoint: BaseCheckpoint, *rest: Any, **options: Any) -> Any:
        loads.append(checkpoint.folder)
        return load(checkpoint, *rest, **options)

    def check_capture(self: FastEngine, batches: Any, pool_bytes: int, repeats: float) -> None:
        assert (pool_bytes, repeats) == (1000, 3.5)
        capture(self, batches, pool_bytes, repeats)

    monkeypatch.setattr(module, "load_decoder", record_load)
    monkeypatch.setattr(FastEngine, "capture_ahead", check_capture)
    checkpoint, processor = BaseCheckpoint.from_folder(tiny), Processor.from_folder(tiny, adapter_metadata.processor)
    batch = pack([processor.encode(example) for example in conversations], 10)
    features = build_features(checkpoint, processor.image_processor, CPU, torch.float32)
    pending = open_for_training(
        checkpoint, LoraSettings(rank=4, alpha=8), features, torch.float32, seed=5,
        resume_from=saved if resumed else None, group_by_image=False, first_batches=[batch], repeats=3.5,
        fit=MemoryFit(1000, recompute_layers=1, peak_bytes=0, pool_bytes=1000, is_loaded_in_turn=in_turn),
    )  # fmt: skip
    pending.wait_for_tower()
    assert not (in_turn and loads)
    fit = MemoryFit(1000, recompute_layers=2, peak_bytes=0, pool_bytes=1000)
    engine = pending.build_engine(pending.wait_for_decoder(), fit, [batch])
    adapter = engine.adapter
    assert engine._recompute_layers == 2, "what is free is known by now"
    assert loads == [tiny]
    if resumed:
        state = SavedAdapter.load(saved).state
        assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.copy_to_cpu().items())
    else:
        assert torch.equal(adapter.values, FlatLoraParams.init_values(adapter.shape, 5))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_tower_runs_on_a_full_call(
    tiny_family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    calls: list[tuple[VisionTower, Sequence[ImageGrid], Tensor, Tensor]] = []
    tower_class, limit = find_tower_class(model_type), 1700
    run = tower_class.__call__

    def record(self: VisionTower, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
        calls.append((self, grids, patches, features := run(self, grids, patches)))
        return features

    monkeypatch.setattr(tower_class, "__call__", record)
    monkeypatch.setattr(import_module("lorgnette.engine.open_for_training"), "MAX_PATCHES_PER_CALL", limit)
    folder = tiny_family(model_type)
    config = parse_configs(BaseCheckpoint.from_folder(folder).load_hf_config())[1]
    grids = [ImageGrid(Image(folder / f"{h}.png"), 1, h, 20, config.merge_size) for h in (10, 30)]
    warm_up_tower(config, grids, CPU, torch.float32)
    ((tower, call_grids, patches, features),) = calls
    assert (tower.config.depth, tower.config.embed_dim) == (1, config.embed_dim)
    assert patches.shape == (sum(grid.h * grid.w for grid in call_grids), config.patch_dim)
    assert limit - 30 * 20 < len(patches) <= limit < MAX_PATCHES_PER_CALL
    assert set(call_grids) == set(grids)
    num_levels = min(2, 1 + len(config.deepstack_blocks))  # one level stands for all
    assert features.shape == (len(patches) // 4, num_levels * config.out_features)
    assert not features.any()


@pytest.mark.parametrize(("model_type", "dropout"), [("qwen2_vl", 0.0), ("qwen3_vl", 0.3)])
def test_a_small_decoder_runs_as_in_training_and_evaluation(
    tiny_family: Callable[[str], Path],
    adapter_metadata: AdapterMetadata,
    conversations: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    dropout: float,
) -> None:
    """Forward and backward with dropout, forward without, through a middle and a last layer."""
    folder = tiny_family(model_type)
    checkpoint, processor = (
        BaseCheckpoint.from_folder(folder),
        Processor.from_folder(folder, adapter_metadata.processor),
    )
    batch = pack([processor.encode(example) for example in conversations], 10)
    features = build_features(checkpoint, processor.image_processor, CPU, torch.float32)
    shape = AdapterShape(checkpoint.load_text_config(), TARGET_MODULES, 4, 2.0)
    engines: list[Any] = []
    run = FastEngine.warmup

    def record(self: FastEngine, batches: Any, repeats: float) -> Any:
        engines.append(self)
        return run(self, batches, repeats)

    monkeypatch.setattr(FastEngine, "warmup", record)
    warm_up_decoder(shape, [batch], features, torch.float32, dropout)
    (engine,) = engines
    assert len(engine.decoder.layers) == WARMUP_LAYERS
    assert engine.decoder.config.hidden_size == shape.text.hidden_size
    assert engine.decoder.config.vocab_size == shape.text.vocab_size
    assert engine._dropout == dropout
    assert engine.adapter.values.grad.isfinite().all()
