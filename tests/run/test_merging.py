"""`merge` refuses to write over anything, and its folder is a model like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.report.terminal import Terminal
from lorgnette.run.merging import merge
from lorgnette.run.opened import Asked
from lorgnette.run.starting import train


def test_an_adapter_becomes_a_model(chosen: Callable[..., Settings], tmp_path: Path) -> None:
    folder = train(chosen())
    out = merge(folder.adapter, tmp_path / "merged")
    asked = Asked.of(str(out), None, Terminal())
    assert asked.checkpoint.family.model_type == "qwen2_vl"
    assert asked.encoder.rule.size == (28, 28)  # a merged model is asked as its adapter was trained
    with pytest.raises(UsageError, match="something is there already"):
        merge(folder.adapter, out)


def test_it_says_where_it_is(chosen: Callable[..., Settings], tmp_path: Path, capsys: Any) -> None:
    folder = train(chosen())
    merge(folder.adapter, tmp_path / "one")
    assert str(tmp_path / "one") in capsys.readouterr().err
