"""A model opened by our own engine says what the reference says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LoraSettings
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import PendingEngine, build_features, explain_unsupported_inference, load_fast_model
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import CONFIG_FILE, SavedAdapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch

CPU = torch.device("cpu")


@pytest.fixture
def batch(tiny: Path, contract: AdapterMetadata, conversations: list[Example]) -> PackedBatch:
    encoder = Processor.from_folder(tiny, contract.processor)
    return pack([encoder.encode(example) for example in conversations], 10)


@pytest.fixture
def features(tiny: Path, contract: AdapterMetadata, batch: PackedBatch) -> Features:
    made = build_features(
        BaseCheckpoint.from_folder(tiny),
        Processor.from_folder(tiny, contract.processor).image_processor,
        CPU,
        torch.float32,
    )
    assert not made.prepare(batch.grids)
    return made


def test_a_saved_adapter_gives_the_references_losses(
    tiny: Path, saved: Path, tuned: Any, contract: AdapterMetadata, features: Features, batch: PackedBatch
) -> None:
    model = load_fast_model(BaseCheckpoint.from_folder(tiny), SavedAdapter.load(saved), features, torch.float32)
    assert model.adapter is not None
    rule = Processor.from_folder(tiny, contract.processor).image_processor
    theirs = Features(HfVisionTower(tuned.get_base_model()), rule, is_live=False)
    theirs.prepare(batch.grids)
    reference = ReferenceEngine(tuned.eval(), theirs)
    with torch.no_grad():
        wanted = reference.compute_label_losses(batch)
        with tuned.disable_adapter():
            bare = reference.compute_label_losses(batch)
    found = FastEngine(model.decoder, model.adapter, features, dropout=0.5, seed=0).compute_label_losses(batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert (found - bare).abs().max() > 1e-2  # the comparison can fail


def test_an_untuned_model_has_no_adapter(tiny: Path, features: Features) -> None:
    model = load_fast_model(BaseCheckpoint.from_folder(tiny), None, features, torch.float32)
    assert model.adapter is None
    assert model.speaker is model.speaker


@pytest.mark.parametrize("resumed", [False, True])
def test_an_opening_ends_with_the_adapter_that_was_drawn_or_saved(
    tiny: Path, saved: Path, features: Features, batch: PackedBatch, resumed: bool
) -> None:
    opening = PendingEngine(
        BaseCheckpoint.from_folder(tiny), LoraSettings(rank=4, alpha=8), features, torch.float32, seed=5,
        resume_from=saved if resumed else None, group_by_image=False, recompute_layers=1, first_batches=[batch],
    )  # fmt: skip
    engine = opening.wait_for_engine()
    if resumed:
        state = SavedAdapter.load(saved).state
        assert all(torch.equal(tensor, state[name]) for name, tensor in engine.adapter.copy_to_cpu().items())
    else:
        assert torch.equal(engine.adapter.values, FlatLoraParams.init_values(engine.adapter.shape, 5))


def test_what_cannot_be_answered_is_named(tiny: Path, saved: Path, tmp_path: Path) -> None:
    checkpoint, folder = BaseCheckpoint.from_folder(tiny), shutil.copytree(saved, tmp_path / "copied")
    assert explain_unsupported_inference(checkpoint, None) is None
    assert explain_unsupported_inference(checkpoint, SavedAdapter.load(saved)) is None
    (folder / CONFIG_FILE).write_text(json.dumps(json.loads((folder / CONFIG_FILE).read_text()) | {"use_dora": True}))
    assert "use_dora" in str(explain_unsupported_inference(checkpoint, SavedAdapter.load(folder)))
