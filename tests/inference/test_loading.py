"""A model and an adapter are resolved and checked before weights are read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError
from lorgnette.inference.loading import LoadedModel, ModelCache, ModelSpec, build_metadata, explain_out_of_memory
from lorgnette.report.console import Terminal

TERMINAL = Terminal()


@pytest.fixture
def adapter(make_settings: Callable[..., Settings], tmp_path: Path) -> Path:
    """An adapter's folder with `lorgnette.json` alone."""
    settings = make_settings("data.prompt=What?", "image_size=56")
    spec = ModelSpec.from_names(settings.model, None, TERMINAL)
    folder = tmp_path / "adapter"
    folder.mkdir()
    build_metadata(settings, spec.checkpoint, spec.processor).write(folder)
    return folder


def test_an_adapter_brings_its_base_model_and_processor_settings(adapter: Path, tiny: Path) -> None:
    spec = ModelSpec.from_names(None, adapter, TERMINAL)
    assert spec.checkpoint.folder == tiny.resolve()
    assert spec.processor.image_processor.size == (56, 56)
    assert spec.metadata is not None
    assert spec.metadata.prompt == "What?"
    assert ModelSpec.from_names(str(tiny), None, TERMINAL).processor.image_processor.size == (280, 280)


def test_metadata_has_the_plain_name_of_the_base_model(make_settings: Callable[..., Settings]) -> None:
    """The prefix `modelscope:` is ours; PEFT knows the plain name."""
    spec = ModelSpec.from_names(make_settings().model, None, TERMINAL)
    for model, name in (("modelscope:Qwen/Q", "Qwen/Q"), ("Qwen/Q", "Qwen/Q"), ("demo", "demo")):
        assert build_metadata(make_settings(f"model={model}"), spec.checkpoint, spec.processor).model == name


def test_a_run_stands_for_its_adapter(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert ModelSpec.from_names(None, tmp_path, TERMINAL).adapter == adapter
    (tmp_path / "config.yaml").unlink()  # no longer a run, only a folder with an adapter in it
    with pytest.raises(LorgnetteError, match=r"not an adapter .* did you mean"):
        ModelSpec.from_names(None, tmp_path, TERMINAL)


def test_the_built_in_model_has_its_own_image_size() -> None:
    spec = ModelSpec.from_names("demo", None, TERMINAL)
    assert spec.processor.image_processor.size == (112, 112)
    assert spec.metadata is not None
    assert spec.metadata.fingerprint == spec.checkpoint.fingerprint


def test_a_moved_base_model_is_named(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    file = adapter / "lorgnette.json"
    file.write_text(file.read_text().replace(str(tiny.resolve()), "/gone"))
    with pytest.raises(LorgnetteError, match=r"the adapter's base model is missing · /gone · .*--model"):
        ModelSpec.from_names(None, adapter, TERMINAL)
    assert ModelSpec.from_names(str(tiny), adapter, TERMINAL).base_model == str(tiny)
    with pytest.raises(LorgnetteError, match=r"other weights .* was trained on /gone: leave out model= \(--model\)"):
        ModelSpec.from_names("demo", adapter, TERMINAL)


def test_a_base_model_is_loaded_for_inference(tiny: Path) -> None:
    loaded = ModelSpec.from_names(str(tiny), None, TERMINAL).load("cpu")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. GPU 0 has"),
            "CUDA out of memory. Tried",
        ),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried 1 TB"), "can't allocate memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "MPS backend out of memory"),
        (MemoryError(), "no details"),
    ],
)
def test_out_of_memory_has_a_hint(error: Exception, message: str) -> None:
    with (
        pytest.raises(LorgnetteError, match=f"out of memory: {message}.* · memory · use less"),
        explain_out_of_memory("use less"),
    ):
        raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("use less"):
        raise RuntimeError("shape mismatch")


def test_cache_keeps_the_last_model(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ModelSpec.from_names(str(tiny), None, TERMINAL), ModelSpec.from_names("demo", None, TERMINAL)
    loaded: list[ModelSpec] = []

    def load(spec: ModelSpec, device: str) -> LoadedModel:
        loaded.append(spec)
        return LoadedModel(object(), spec.processor)

    monkeypatch.setattr(ModelSpec, "load", load)
    cache = ModelCache("cpu")
    assert cache.get(a) is cache.get(a)
    assert cache.get(b) is not cache.get(a)
    assert loaded == [a, b, a]
