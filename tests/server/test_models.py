"""What is served is checked before any weight is read, and asked as it was trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelSpec
from lorgnette.report.console import Terminal
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.server.models import ModelSet, load_models


def resolve(model: str | None = None, adapter: Path | None = None) -> ModelSpec:
    return ModelSpec.from_names(model, adapter, Terminal())


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights is a failure."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("lorgnette.engine.loading.load_decoder", refuse)


@pytest.fixture(scope="module")
def models(adapter_folders: dict[str, Path]) -> ModelSet:
    return load_models({name: resolve(None, path) for name, path in adapter_folders.items()}, "cpu")


def test_adapters_and_their_base_model_have_names(models: ModelSet) -> None:
    assert [(model.name, model.adapter, model.parent) for model in models.models] == [
        ("captions", 0, "base"),
        ("colors", 1, "base"),
        ("base", None, None),
    ]
    assert models.adapter_ranks == (4, 2)
    assert models.find("captions") is models.models[0]
    assert models.find("base") is models.find("demo") is models.models[2]
    assert models.find("Captions") is None
    assert models.base_model == "demo"
    assert {model.prompt for model in models.models} == {"COCO Yes:"}
    assert {model.max_new_tokens for model in models.models} == {models.models[0].max_new_tokens}
    fingerprints = [model.fingerprint for model in models.models]
    assert len(set(fingerprints)) == 3
    assert all(len(bytes.fromhex(text)) == 4 for text in fingerprints)


def test_a_model_alone_has_its_own_name() -> None:
    models = load_models({"scenes": resolve("demo")}, "cpu", max_new_tokens=7)
    [model] = models.models
    assert (model.name, model.adapter, model.parent, model.max_new_tokens) == ("scenes", None, None, 7)
    assert models.find("scenes") is models.find("base") is models.find("demo") is model
    assert models.adapter_ranks == ()


def test_each_adapter_is_asked_as_it_was_trained(adapter_folders: dict[str, Path], tmp_path: Path) -> None:
    """The base model is asked as the first adapter is."""
    other = tmp_path / "other"
    shutil.copytree(adapter_folders["colors"], other)
    metadata = json.loads((other / "lorgnette.json").read_text())
    metadata["prompt"], metadata["predict_max_new_tokens"] = "Which color?", 9
    metadata["processor"]["image_size"] = [56, 84]
    (other / "lorgnette.json").write_text(json.dumps(metadata))
    models = load_models({"other": resolve(None, other), "captions": resolve(None, adapter_folders["captions"])}, "cpu")
    first, second, base = models.models
    for model in (first, base):
        assert (model.prompt, model.max_new_tokens) == ("Which color?", 9)
        assert model.processor.image_processor.size == (56, 84)
    assert (second.prompt, second.processor.image_processor.size) == ("COCO Yes:", (112, 112))


def test_a_name_wins_over_an_alias(adapter_folders: dict[str, Path]) -> None:
    models = load_models({"demo": resolve(None, adapter_folders["captions"])}, "cpu")
    found = models.find("demo")
    assert found is not None
    assert found.adapter == 0


@pytest.mark.usefixtures("no_weights")
def test_what_cannot_be_served_together_is_refused(adapter_folders: dict[str, Path], tiny: Path) -> None:
    captions = resolve(None, adapter_folders["captions"])
    with pytest.raises(LorgnetteError, match=r"captions and tiny have different base models · captions: .*tiny: "):
        load_models({"captions": captions, "tiny": resolve(str(tiny))}, "cpu")
    with pytest.raises(UsageError, match=r"the base model is served in any case, as base · demo · leave out demo"):
        load_models({"captions": captions, "demo": resolve("demo")}, "cpu")
    with pytest.raises(UsageError, match="an adapter cannot be called base"):
        load_models({"base": captions}, "cpu")
    with pytest.raises(UsageError, match="nothing to serve"):
        load_models({}, "cpu")


@pytest.mark.usefixtures("no_weights")
def test_the_same_weights_with_other_inputs_are_another_base_model(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(BUILT_IN_MODEL, copy)
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(LorgnetteError, match="different base models"):
        load_models({"one": resolve("demo"), "two": resolve(str(copy))}, "cpu")


@pytest.mark.usefixtures("no_weights")
def test_what_the_fast_engine_cannot_run_is_refused_with_a_remedy(
    tiny_family: Callable[..., Path], adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(LorgnetteError, match=r"serve does not run .* vLLM"):
        load_models({"new": resolve(str(tiny_family("qwen3_5")))}, "cpu")
    dora = tmp_path / "dora"
    shutil.copytree(adapter_folders["captions"], dora)
    path = dora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(LorgnetteError, match=r"serve does not run the adapter's use_dora .* lorgnette merge"):
        load_models({"dora": resolve(None, dora)}, "cpu")
    with pytest.raises(LorgnetteError, match="MPS"):
        load_models({"demo": resolve("demo")}, "mps")
