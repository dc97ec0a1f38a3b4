"""A model opened by our own engine says what the reference says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import Lora
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import Opening, features_of, opened, unsupported_answers
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.features.image_features import Features, Tower
from lorgnette.lora.flat_params import FlatAdapter
from lorgnette.lora.metadata import Contract
from lorgnette.lora.peft_files import CONFIG, SavedAdapter
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Encoder
from lorgnette.types import Example, PackedBatch

CPU = torch.device("cpu")


@pytest.fixture
def batch(tiny: Path, contract: Contract, conversations: list[Example]) -> PackedBatch:
    encoder = Encoder.of_folder(tiny, contract.encode)
    return pack([encoder.encode(example) for example in conversations], 10)


@pytest.fixture
def features(tiny: Path, contract: Contract, batch: PackedBatch) -> Features:
    made = features_of(Checkpoint.at(tiny), Encoder.of_folder(tiny, contract.encode).rule, CPU, torch.float32)
    assert not made.prepare(batch.grids)
    return made


def test_a_saved_adapter_gives_the_references_losses(
    tiny: Path, saved: Path, tuned: Any, contract: Contract, features: Features, batch: PackedBatch
) -> None:
    model = opened(Checkpoint.at(tiny), SavedAdapter.read(saved), features, torch.float32)
    assert model.adapter is not None
    rule = Encoder.of_folder(tiny, contract.encode).rule
    theirs = Features(Tower(tuned.get_base_model()), rule, live=False)
    theirs.prepare(batch.grids)
    reference = ReferenceEngine(tuned.eval(), theirs)
    with torch.no_grad():
        wanted = reference.label_losses(batch)
        with tuned.disable_adapter():
            bare = reference.label_losses(batch)
    found = FastEngine(model.decoder, model.adapter, features, dropout=0.5, seed=0).label_losses(batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert (found - bare).abs().max() > 1e-2  # the comparison can fail


def test_an_untuned_model_has_no_adapter(tiny: Path, features: Features) -> None:
    model = opened(Checkpoint.at(tiny), None, features, torch.float32)
    assert model.adapter is None
    assert model.speaker is model.speaker


@pytest.mark.parametrize("resumed", [False, True])
def test_an_opening_ends_with_the_adapter_that_was_drawn_or_saved(
    tiny: Path, saved: Path, features: Features, batch: PackedBatch, resumed: bool
) -> None:
    opening = Opening(
        Checkpoint.at(tiny), Lora(rank=4, alpha=8), features, torch.float32, seed=5,
        saved=saved if resumed else None, grouped=False, again=1, coming=[batch],
    )  # fmt: skip
    engine = opening.engine()
    if resumed:
        state = SavedAdapter.read(saved).state
        assert all(torch.equal(tensor, state[name]) for name, tensor in engine.adapter.on_cpu().items())
    else:
        assert torch.equal(engine.adapter.values, FlatAdapter.drawn(engine.adapter.shape, 5))


def test_what_cannot_be_answered_is_named(tiny: Path, saved: Path, tmp_path: Path) -> None:
    checkpoint, folder = Checkpoint.at(tiny), shutil.copytree(saved, tmp_path / "copied")
    assert unsupported_answers(checkpoint, None) is None
    assert unsupported_answers(checkpoint, SavedAdapter.read(saved)) is None
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | {"use_dora": True}))
    assert "use_dora" in str(unsupported_answers(checkpoint, SavedAdapter.read(folder)))
