"""A training that makes features beside its steps is the one that makes them before, to the last bit."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import lorgnette
from lorgnette.config import Settings
from lorgnette.engine.fast import FastEngine
from lorgnette.errors import LorgnetteError
from lorgnette.features import decode_pool
from lorgnette.features.cache_folder import is_in_use, list_sets
from lorgnette.features.decode_pool import DecodePool
from lorgnette.features.decode_process import DecodeProcessError
from lorgnette.features.image_features import Features
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.planning import memory
from lorgnette.report import run_log
from lorgnette.types import ImageGrid

SETTINGS = ("device=cpu", "engine=fast", "dtype=float32", "train.epochs=2", "train.save_steps=1", "train.eval_steps=3")


@dataclass
class Runs:
    """Trains on the same six images again and again, each time without any features on disk."""

    settings: Settings
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    events: list[str] = field(default_factory=list)
    output: io.StringIO = field(default_factory=io.StringIO)

    def train(self, name: str, *, beside: bool, callbacks: Any = (), **values: Any) -> Any:
        self.start(name, beside=beside)
        console = Console(file=self.output, width=200)
        run = self.folder / name
        return lorgnette.train(self.settings, run=run, callbacks=callbacks, console=console, **values)

    def start(self, cache: str, *, beside: bool) -> None:
        self.monkeypatch.setenv("XDG_CACHE_HOME", str(self.folder / f"cache of {cache}"))
        self.monkeypatch.setattr(memory, "MIN_IMAGES_BESIDE_STEPS", 1 if beside else 100)
        self.events.clear()


@pytest.fixture
def runs(make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """One image in a call of the tower. events: calls of the tower and steps."""
    runs = Runs(make_settings(*SETTINGS), tmp_path, monkeypatch)
    encode, backward = Features._encode, FastEngine.backward

    def record_encode(self: Features, pixels: Any, *rest: Any, **options: Any) -> None:
        runs.events.append("".join(sorted(grid.image.path.stem for grid in pixels)))
        encode(self, pixels, *rest, **options)

    def record_backward(self: FastEngine, batch: Any) -> Any:
        runs.events.append("step")
        return backward(self, batch)

    monkeypatch.setattr(decode_pool, "MAX_PATCHES_PER_CALL", 4)
    monkeypatch.setattr(decode_pool, "PREFETCH_GROUPS", 1)
    monkeypatch.setattr(Features, "_encode", record_encode)
    monkeypatch.setattr(FastEngine, "backward", record_backward)
    return runs


def read_adapter(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.path / "adapter" / WEIGHTS_FILE)


def read_losses(run: Any) -> list[float]:
    records = run_log.read_log(run.path / "log.jsonl")
    return [record[name] for record in records for name in ("loss", "eval_loss") if name in record]


def is_same(a: Any, b: Any) -> bool:
    first, second = read_adapter(a), read_adapter(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_features_beside_the_steps_give_the_same_run(runs: Runs, device: str) -> None:
    """On a GPU in bfloat16 and with CUDA graphs."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    runs.settings = runs.settings.model_copy(update={"device": device, "dtype": dtype})
    before = runs.train("before", beside=False)
    made_before = [event for event in runs.events if event != "step"]
    assert runs.events == [*made_before, *["step"] * 4]
    assert "beside the steps" not in runs.output.getvalue()

    beside = runs.train("beside", beside=True)
    assert "features   of 7 images, made beside the steps" in runs.output.getvalue()
    assert [event for event in runs.events if event != "step"] == made_before, "the same calls of the tower"
    assert runs.events[:3] == made_before[:3], "the sample and the held-out images"
    assert runs.events[3:] == [*made_before[3:5], "step", *made_before[5:], "step", "step", "step"]
    assert is_same(before, beside)
    assert read_losses(before) == read_losses(beside)
    assert len(read_losses(beside)) == 4 + 3

    encode = Features._encode

    def encode_darker(self: Features, pixels: Any, *rest: Any, **options: Any) -> None:
        encode(self, {grid: image // 2 for grid, image in pixels.items()}, *rest, **options)

    runs.monkeypatch.setattr(Features, "_encode", encode_darker)
    assert not is_same(before, runs.train("darker", beside=True)), "the images matter"


def test_a_run_knows_its_images_by_their_hashes(runs: Runs) -> None:
    """They were read for the manifest: their features are found on the disk without reading them again."""
    start, given = Features.start_decoding, list[Any]()

    def record(self: Features, grids: list[ImageGrid], world: Any, digests: Any) -> None:
        given.append(({grid.image.path for grid in grids} - digests.keys(), digests))
        start(self, grids, world, digests)

    runs.monkeypatch.setattr(Features, "start_decoding", record)
    runs.train("known", beside=False)
    [(others, digests)] = given
    assert not others
    assert sum(not path.is_relative_to(runs.folder) for path in digests) == 1, "the sample"
    assert digests == {path: hashlib.sha256(path.read_bytes()).digest() for path in digests}


@pytest.mark.parametrize("has_cache", [True, False])
def test_a_run_that_is_resumed_makes_what_its_steps_need(runs: Runs, has_cache: bool) -> None:
    whole = runs.train("whole", beside=True)
    calls = [event for event in runs.events if event != "step"]
    stopped = runs.train("stopped", beside=True, callbacks=[lambda step, loss: step == 1])
    assert [event for event in runs.events if event != "step"] == calls[:5]
    runs.start("stopped" if has_cache else "nothing", beside=True)
    lorgnette.resume(stopped, console=Console(file=runs.output))
    assert is_same(whole, stopped)
    made = [event for event in runs.events if event != "step"]
    assert sorted(made) == sorted(calls[5:] if has_cache else calls), "the second epoch needs all images"


def test_a_damaged_image_stops_the_run_with_its_steps_saved(runs: Runs) -> None:
    """Its header and its end are right."""
    path = runs.folder / "green.png"  # of the second step
    content = path.read_bytes()
    start = content.index(b"IDAT") + 8
    path.write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
    with pytest.raises(LorgnetteError, match=r"step 2: image cannot be decoded.*green\.png.*captions\.csv, row 3"):
        runs.train("beside", beside=True)
    assert runs.events.count("step") == 1
    run = runs.folder / "beside"
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step-000001"]
    with pytest.raises(LorgnetteError, match=r"step 2: image cannot be decoded"):
        lorgnette.resume(run, console=Console(file=runs.output))
    skipping = runs.settings.data.model_copy(update={"on_bad_row": "skip"})
    runs.settings = runs.settings.model_copy(update={"data": skipping})
    runs.train("skipped", beside=True)
    assert runs.events[-4:] == ["step"] * 4, "all images are decoded before, and the row is left out"
    assert "green.png" in runs.output.getvalue()


@pytest.mark.parametrize("beside", [False, True])
def test_a_training_that_does_not_start_closes_its_features(runs: Runs, beside: bool) -> None:
    """While the error is there, which a notebook keeps."""
    for path in runs.folder.glob("*.png"):
        content = path.read_bytes()
        start = content.index(b"IDAT") + 8
        path.write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
    with pytest.raises(LorgnetteError, match="cannot be decoded") as error:
        runs.train("broken", beside=beside)
    assert "step" not in runs.events
    [folder] = list_sets(runs.folder / "cache of broken" / "lorgnette" / "features")
    assert not is_in_use(folder)
    assert error.tb is not None


@pytest.mark.parametrize("beside", [False, True])
def test_an_error_behind_the_images_closes_their_features(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    """Here of the engine, while a notebook keeps the error."""

    def fail(device: object) -> None:
        raise LorgnetteError("the device is lost")

    monkeypatch.setattr("lorgnette.training.setup._synchronize", fail)
    with pytest.raises(LorgnetteError, match="the device is lost") as error:
        runs.train("broken", beside=beside)
    [folder] = list_sets(runs.folder / "cache of broken" / "lorgnette" / "features")
    assert not is_in_use(folder)
    assert error.tb is not None


def test_the_end_of_a_process_that_decodes_stops_the_run_with_its_steps_saved(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = DecodePool.decode

    def end(self: DecodePool, grid: ImageGrid, *, has_key: bool) -> Any:
        if grid.image.path.name == "green.png":  # of the second step
            raise DecodeProcessError("a process that decodes images ended with status -9")
        return decode(self, grid, has_key=has_key)

    whole = runs.train("whole", beside=True)
    at_the_end = runs.settings.train.model_copy(update={"save_steps": None})  # of an epoch
    runs.settings = runs.settings.model_copy(update={"train": at_the_end})
    with monkeypatch.context() as patch:
        patch.setattr(DecodePool, "decode", end)
        with pytest.raises(DecodeProcessError, match="status -9"):
            runs.train("beside", beside=True)
    run = runs.folder / "beside"
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step-000001"]
    resumed = lorgnette.resume(run, console=Console(file=runs.output))
    assert is_same(whole, resumed)
