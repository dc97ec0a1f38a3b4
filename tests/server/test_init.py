"""The server says what it lacks."""

import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest

import lorgnette.server
from lorgnette.errors import LorgnetteError


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """As after `git pull` in an environment of an earlier version."""
    path, find_spec = Path(lorgnette.server.__file__), importlib.util.find_spec
    runpy.run_path(str(path))

    def find(name: str) -> Any:
        return None if name == missing else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(LorgnetteError, match=f"{missing} is not installed · serve · pip install starlette uvicorn"):
        runpy.run_path(str(path))
