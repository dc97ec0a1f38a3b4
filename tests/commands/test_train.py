"""A run that fails before its first step leaves nothing; one that has started stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette import config
from lorgnette.commands import train as train_module
from lorgnette.commands.train import resume, train
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.run_dir import RunDir
from lorgnette.training.data_module import TrainingData

Chosen = Callable[..., Settings]


@pytest.mark.parametrize("has_started", [False, True])
def test_only_a_run_that_has_started_stays(
    has_started: bool, chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(settings: Settings, run_dir: RunDir, *_: Any) -> None:
        assert run_dir.config.is_file()
        assert run_dir.manifest.is_file()
        if has_started:
            run_dir.log.touch()
        raise LorgnetteError("no")

    monkeypatch.setattr(train_module, "_train", fail)
    with pytest.raises(LorgnetteError, match="no"):
        train(chosen())
    assert (tmp_path / "run").exists() is has_started


def test_a_folder_with_other_files_stays(chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings, run_dir: RunDir, *_: Any) -> None:
        (run_dir.path / "notes.txt").write_text("mine")
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "_train", fail)
    with pytest.raises(KeyboardInterrupt):
        train(chosen())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"notes.txt", "config.yaml", "manifest.json"}
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run")  # it can be resumed


def test_a_used_run_folder_is_refused_before_the_data_is_read(
    chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    monkeypatch.setattr(TrainingData, "load", lambda *_: pytest.fail("data was read"))
    with pytest.raises(UsageError, match="exists and is not empty"):
        train(chosen())


def test_an_unavailable_tracker_is_refused_before_torch_is_needed(
    chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.report.trackers.tracker.is_installed", lambda name: False)
    monkeypatch.setattr("lorgnette.training.run.run_training", lambda *_: pytest.fail("training started"))
    with pytest.raises(UsageError, match="tracker 'wandb' is not installed"):
        train(chosen("report_to=wandb"))
    assert not (tmp_path / "run").exists()


def test_runs_without_a_name_are_numbered(chosen: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_module, "_train", lambda *_: None)
    run_dirs = [train(chosen("run=null"), name="coco") for _ in range(2)]
    assert [str(run_dir.path) for run_dir in run_dirs] == ["runs/coco", "runs/coco-2"]
    saved = config.load_settings(config.read_recipe(run_dirs[1].config))
    assert saved == chosen(f"run={tmp_path / 'runs' / 'coco-2'}")  # absolute paths: it can be resumed from any folder
    assert resume(run_dirs[1].path).path == run_dirs[1].path
