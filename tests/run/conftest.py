"""A small data set, its settings and its material, for looking at one stage of a run alone."""

import io
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
from rich.console import Console

from lorgnette import config
from lorgnette.config import Settings
from lorgnette.report.folder import RunFolder
from lorgnette.report.terminal import Terminal
from lorgnette.run.job import Job
from lorgnette.run.material import Material
from lorgnette.run.stages import Stages

COLOURS = ["red", "green", "blue", "yellow", "black", "white"]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """A CSV of six rows on six pictures."""
    for colour in COLOURS:
        PIL.Image.new("RGB", (60, 40), colour).save(tmp_path / f"{colour}.png")
    path = tmp_path / "captions.csv"
    path.write_text("image_path,caption\n" + "".join(f"{colour}.png,it is {colour}\n" for colour in COLOURS))
    return path


@pytest.fixture
def chosen(tiny: Path, captions: Path) -> Callable[..., Settings]:
    """chosen("train.lr=1") → the settings of a training of two steps on that data."""

    def settings(*words: str) -> Settings:
        given = [
            f"model={tiny}", f"data={captions}", f"run={captions.parent / 'run'}", "encode.size=28", "lora.rank=2",
            "data.holdout=2", "train.batch_size=2", "train.accumulation=1", "train.epochs=1", "track.to=none",
            "predict.max_new_tokens=2",
        ]  # fmt: skip
        return config.load(None, [*given, *words])

    return settings


@pytest.fixture
def said() -> io.StringIO:
    """What `terminal` was told."""
    return io.StringIO()


@pytest.fixture
def terminal(said: io.StringIO) -> Terminal:
    return Terminal(Console(file=said))


@pytest.fixture
def job(chosen: Callable[..., Settings], terminal: Terminal) -> Callable[..., Job]:
    """job("train.lr=1") → a job whose run folder is there and whose material is looked over."""

    def made(*words: str) -> Job:
        settings = chosen(*words)
        assert settings.run is not None
        return Job(
            RunFolder.create(settings.run), settings, Material.of(settings, terminal), Stages(terminal), terminal
        )

    return made
