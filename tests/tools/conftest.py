"""An untrained checkpoint of the built-in model, made once."""

from pathlib import Path

import pytest
from demo_model.checkpoint import make_checkpoint


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "untrained"
    make_checkpoint(folder)
    return folder
