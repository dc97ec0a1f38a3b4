"""The opened engine has the adapter's initial values, or those of the checkpoint."""

from pathlib import Path

import pytest
import torch

from lorgnette.config import LoraSettings
from lorgnette.engine.loading import build_features
from lorgnette.engine.open_for_training import open_for_training
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example


@pytest.mark.parametrize("resumed", [False, True])
def test_the_adapter_is_initialized_or_resumed(
    tiny: Path, saved: Path, contract: AdapterMetadata, conversations: list[Example], resumed: bool
) -> None:
    checkpoint, processor = BaseCheckpoint.from_folder(tiny), Processor.from_folder(tiny, contract.processor)
    batch = pack([processor.encode(example) for example in conversations], 10)
    features = build_features(checkpoint, processor.image_processor, torch.device("cpu"), torch.float32)
    pending = open_for_training(
        checkpoint, LoraSettings(rank=4, alpha=8), features, torch.float32, seed=5,
        resume_from=saved if resumed else None, group_by_image=False, recompute_layers=1, first_batches=[batch],
    )  # fmt: skip
    pending.wait_for_tower()
    adapter = pending.wait_for_engine().adapter
    if resumed:
        state = SavedAdapter.load(saved).state
        assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.copy_to_cpu().items())
    else:
        assert torch.equal(adapter.values, FlatLoraParams.init_values(adapter.shape, 5))
