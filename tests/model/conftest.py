"""A tiny model as the rooms behind this one get it: loaded, with an adapter, saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import Encode, Lora
from lorgnette.families import FAMILIES
from lorgnette.model import adapter, adapter_files
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.contract import Contract
from lorgnette.model.load import load

LORA = Lora(rank=4, alpha=8, dropout=0.5)


@pytest.fixture(scope="session")
def loaded(tiny: Path) -> Callable[[], Any]:
    """loaded() → the tiny model, fresh from its folder."""
    return lambda: load(Checkpoint.at(tiny), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def contract(tiny: Path) -> Contract:
    return Contract(
        family="qwen2_vl",
        model=str(tiny),
        revision=None,
        fingerprint=Checkpoint.at(tiny).fingerprint,
        prompt="COCO Yes:",
        chat_template="template",
        encode=Encode(size=None, image_tokens=(4, 30)),
    )


@pytest.fixture(scope="session")
def tuned(loaded: Callable[[], Any]) -> Any:
    """A model whose adapter has been moved from zero."""
    model = adapter.attach(loaded(), FAMILIES["qwen2_vl"], LORA, seed=0)
    torch.manual_seed(0)
    for parameter in adapter.adapter_state(model).values():
        parameter.data.normal_(0, 0.05)
    return model


@pytest.fixture(scope="session")
def saved(tuned: Any, contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    adapter_files.write(folder, adapter.adapter_state(tuned), FAMILIES["qwen2_vl"], LORA, contract)
    return folder
