"""A model and an adapter are looked over before weights are read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError
from lorgnette.inference.loading import ModelCache, ModelSpec, build_metadata, explain_out_of_memory
from lorgnette.report.console import Terminal

TERMINAL = Terminal()


@pytest.fixture
def adapter(chosen: Callable[..., Settings], tmp_path: Path) -> Path:
    """What stands beside an adapter's weights: `lorgnette.json`."""
    settings = chosen("data.prompt=What?", "image_size=56")
    asked = ModelSpec.from_names(settings.model, None, TERMINAL)
    folder = tmp_path / "adapter"
    folder.mkdir()
    build_metadata(settings, asked.checkpoint, asked.processor).write(folder)
    return folder


def test_an_adapter_brings_its_base_and_its_encoding(adapter: Path, tiny: Path) -> None:
    asked = ModelSpec.from_names(None, adapter, TERMINAL)
    assert asked.checkpoint.folder == tiny.resolve()
    assert asked.processor.image_processor.size == (56, 56)
    assert asked.metadata is not None
    assert asked.metadata.prompt == "What?"
    assert ModelSpec.from_names(str(tiny), None, TERMINAL).processor.image_processor.size == (280, 280)


def test_an_adapter_names_its_base_as_everybody_does(chosen: Callable[..., Settings]) -> None:
    """`modelscope:` before it is our own way of writing; PEFT is told the name."""
    asked = ModelSpec.from_names(chosen().model, None, TERMINAL)
    for model, named in (("modelscope:Qwen/Q", "Qwen/Q"), ("Qwen/Q", "Qwen/Q"), ("demo", "demo")):
        assert build_metadata(chosen(f"model={model}"), asked.checkpoint, asked.processor).model == named


def test_a_run_may_stand_for_its_adapter(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert ModelSpec.from_names(None, tmp_path, TERMINAL).adapter == adapter
    (tmp_path / "config.yaml").unlink()  # no run, only a folder that holds an adapter
    with pytest.raises(LorgnetteError, match="no adapter here"):
        ModelSpec.from_names(None, tmp_path, TERMINAL)


def test_the_built_in_model_is_asked_at_its_own_size() -> None:
    asked = ModelSpec.from_names("demo", None, TERMINAL)
    assert asked.processor.image_processor.size == (112, 112)
    assert asked.metadata is not None
    assert asked.metadata.fingerprint == asked.checkpoint.fingerprint


def test_a_base_model_that_has_moved(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    file = adapter / "lorgnette.json"
    file.write_text(file.read_text().replace(str(tiny.resolve()), "/gone"))
    with pytest.raises(LorgnetteError, match=r"the adapter's base model is gone · /gone · .*--model"):
        ModelSpec.from_names(None, adapter, TERMINAL)
    assert ModelSpec.from_names(str(tiny), adapter, TERMINAL).base_model == str(tiny)
    with pytest.raises(LorgnetteError, match=r"other weights .* was trained on /gone: give that with --model"):
        ModelSpec.from_names("demo", adapter, TERMINAL)


def test_an_untuned_model_answers(tiny: Path) -> None:
    opened = ModelSpec.from_names(str(tiny), None, TERMINAL).load("cpu")
    assert not opened.model.training
    assert not any(p.requires_grad for p in opened.model.parameters())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. GPU 0 has"),
            "CUDA out of memory. Tried",
        ),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried 1 TB"), "can't allocate memory"),
        (MemoryError(), "no more is to be had"),
    ],
)
def test_too_little_memory_is_a_setting_too_large(error: Exception, said: str) -> None:
    with (
        pytest.raises(LorgnetteError, match=f"memory is full: {said}.* · memory · use less"),
        explain_out_of_memory("use less"),
    ):
        raise error


def test_other_errors_are_not_about_memory() -> None:
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("use less"):
        raise RuntimeError("shape mismatch")


def test_weights_stay_open_for_the_next_that_asks_the_same(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, again = ModelSpec.from_names(str(tiny), None, TERMINAL), ModelSpec.from_names("demo", None, TERMINAL)
    opened: list[ModelSpec] = []
    monkeypatch.setattr(ModelSpec, "opened", lambda asked, device: (opened.append(asked), device, len(opened)))
    weights = ModelCache("cpu")
    assert weights.get(one) is weights.get(one)
    assert weights.get(again) is not weights.get(one)
    assert opened == [one, again, one]
