"""The list of models: every model once, with figures from shapes, at 80 columns."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.commands.model import list_models
from lorgnette.hub import modelscope
from lorgnette.models.registry import FAMILIES


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))


def test_every_model_is_in_the_list_and_fits_80_columns(cli: Callable[..., Any]) -> None:
    lines = cli("model", "list").out.splitlines()
    assert all(len(line) <= 80 for line in lines), max(lines, key=len)
    words = [line.removeprefix("  or ").split()[0] for line in lines]
    for family in FAMILIES.values():
        for name in family.hub_names:
            assert words.count(name.removeprefix("Qwen/")) == 1


def test_figures_come_from_the_shapes(cli: Callable[..., Any]) -> None:
    entries = {entry.names[0]: entry for entry in list_models()}
    small, large = entries["Qwen/Qwen2-VL-2B-Instruct"], entries["Qwen/Qwen2.5-VL-7B-Instruct"]
    assert (small.parameters, large.parameters) == (2_208_985_600, 8_292_166_656)  # as published
    # transformers' modules on the meta device.
    assert entries["Qwen/Qwen3.5-4B"].parameters == 4_539_265_536
    assert entries["Qwen/Qwen3.5-35B-A3B"].parameters == 35_107_181_936
    assert small.engine == "fast"
    assert small.download_bytes == 4_417_971_200
    assert 1.2 * small.download_bytes < small.memory_bytes < 2 * small.download_bytes
    assert entries["Qwen/Qwen3-VL-30B-A3B-Instruct"].reason == "its experts"
    assert entries["Qwen/Qwen3.5-4B"].engine == "reference"
    assert cli("model", "list", "--json").out.count('"names"') == len(entries)


def test_a_cached_model_is_marked(tiny: Path, cli: Callable[..., Any]) -> None:
    for name in ("Qwen/Qwen3-VL-4B-Thinking", "Qwen/Qwen2.5-VL-3B-Instruct"):
        shutil.copytree(tiny, modelscope.get_cache_folder("model", name, "master"))
    marks = {line.split()[0]: line.split()[-1] for line in cli("model", "list").out.splitlines()}
    assert marks["Qwen2.5-VL-3B-Instruct"] == "yes"
    assert marks["Qwen3-VL-4B-Instruct"] == "variant"
    assert marks["Qwen2-VL-2B-Instruct"] == "fast"
