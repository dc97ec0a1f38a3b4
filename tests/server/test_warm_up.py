"""Before the first request every model has answered; an adapter that changes nothing is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.errors import LorgnetteError
from lorgnette.inference.continuous_batch import ContinuousBatch
from lorgnette.inference.loading import ModelSpec
from lorgnette.report.console import Terminal
from lorgnette.server.models import ModelSet, load_models
from lorgnette.server.warm_up import build_prompt, warm_up


@pytest.fixture(scope="module")
def models(adapter_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    """`captions`, `colors`, and `zero`, whose B factors are zero as before training."""
    zero = tmp_path_factory.mktemp("zero") / "zero"
    shutil.copytree(adapter_folders["captions"], zero)
    path = zero / "adapter_model.safetensors"
    save_file({name: t * (0 if "lora_B" in name else 1) for name, t in load_file(path).items()}, path)
    folders = {**adapter_folders, "zero": zero}
    return load_models({name: ModelSpec.from_names(None, path, Terminal()) for name, path in folders.items()}, "cpu")


@pytest.fixture
def batch(models: ModelSet) -> ContinuousBatch:
    return ContinuousBatch(models.generator, models.adapter_ranks)


def test_an_adapter_that_changes_nothing_is_named(models: ModelSet, batch: ContinuousBatch) -> None:
    [remark] = warm_up(models, batch, models.features)
    assert remark.startswith("zero: this adapter changes nothing")


def test_many_adapters_are_asked_in_turn(
    models: ModelSet, batch: ContinuousBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.server.warm_up._MAX_ADAPTERS", 1)
    assert len(warm_up(models, batch, models.features)) == 1
    assert batch.step() == []  # all have left


def test_a_model_that_computes_no_numbers_is_refused(models: ModelSet, batch: ContinuousBatch) -> None:
    norm = models.generator.decoder.norm
    kept = norm.clone()
    norm.fill_(torch.nan)
    try:
        with pytest.raises(LorgnetteError, match=r"no numbers · base"):
            warm_up(models, batch, models.features)
    finally:
        norm.copy_(kept)
    assert batch.step() == []


def test_the_prompt_needs_no_file(models: ModelSet) -> None:
    *_, base = models.models
    prompt, pixels = build_prompt(base)
    [(grid, image)] = pixels.items()
    assert image.shape == (grid.h * 14, grid.w * 14, 3) == (112, 112, 3)
    assert grid.num_tokens == (prompt.input_ids == base.processor.image_token_id).sum()
    native = replace(
        base, processor=replace(base.processor, image_processor=replace(base.processor.image_processor, size=None))
    )
    [grid] = build_prompt(native)[1]
    assert (grid.h, grid.w) == (16, 16)
