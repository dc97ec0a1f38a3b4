"""A run that fails before its first step leaves nothing; one that has begun stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette import config
from lorgnette.commands import train as train_module
from lorgnette.commands.train import resume, train
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError

Chosen = Callable[..., Settings]


def failing(*, begun: bool) -> Callable[[Any], None]:
    def tune(job: Any) -> None:
        assert job.folder.config.is_file()
        assert job.folder.manifest.is_file()
        if begun:
            job.folder.log.touch()
        raise LorgnetteError("no")

    return tune


@pytest.mark.parametrize("begun", [False, True])
def test_only_a_run_that_has_begun_stays(
    begun: bool, chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_import_and_train", failing(begun=begun))
    with pytest.raises(LorgnetteError, match="no"):
        train(chosen())
    assert (tmp_path / "run").exists() is begun


def test_what_others_put_there_stays(chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tune(job: Any) -> None:
        (job.folder.path / "notes.txt").write_text("mine")
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "_import_and_train", tune)
    with pytest.raises(KeyboardInterrupt):
        train(chosen())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"notes.txt", "config.yaml", "manifest.json"}
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run")  # it is a run still


def test_a_taken_name_is_found_before_the_data_is_read(
    chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    monkeypatch.setattr("lorgnette.training.data_module.TrainingData.of", lambda *_: pytest.fail("data was read"))
    with pytest.raises(UsageError, match="exists and is not empty"):
        train(chosen())


def test_runs_without_a_name_are_counted(chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_module, "_import_and_train", lambda job: None)
    folders = [train(chosen("run=null"), name="coco") for _ in range(2)]
    assert [str(folder.path) for folder in folders] == ["runs/coco", "runs/coco-2"]
    again = config.load_settings(config.read_recipe(folders[1].config))
    assert again == chosen(f"run={tmp_path / 'runs' / 'coco-2'}")  # whole paths: it can be resumed from anywhere
    assert resume(folders[1].path).path == folders[1].path
