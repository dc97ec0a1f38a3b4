"""The run folder: its files, and no run overwrites another."""

from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.run_dir import RunDir, find_free_path


def test_the_files_of_a_run(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "runs" / "coco")
    paths = [
        run_dir.config, run_dir.manifest, run_dir.adapter, run_dir.checkpoints, run_dir.log, run_dir.predictions,
        run_dir.report,
    ]  # fmt: skip
    names = "config.yaml manifest.json adapter checkpoints log.jsonl predictions.jsonl report.html"
    assert [path.name for path in paths] == names.split()
    assert {path.parent for path in paths} == {tmp_path / "runs" / "coco"}
    assert run_dir.path.is_dir()


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "coco")
    RunDir.create(tmp_path / "coco")  # still empty
    run_dir.log.write_text("")
    with pytest.raises(UsageError, match=r"exists.*lorgnette train --resume"):
        RunDir.create(tmp_path / "coco")


def test_a_file_of_the_same_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "coco").write_text("")
    with pytest.raises(LorgnetteError, match="cannot be created"):
        RunDir.create(tmp_path / "coco")


def test_only_a_run_folder_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run folder"):
        RunDir.open_existing(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"no config\.yaml"):
        RunDir.open_existing(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    assert RunDir.open_existing(tmp_path) == RunDir(tmp_path)


def test_the_number_comes_before_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "compare.html").touch()
    assert find_free_path(tmp_path, "compare", ".html") == tmp_path / "compare-2.html"


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco"
    (tmp_path / "coco").mkdir()
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco"
    (tmp_path / "coco" / "x").write_text("")
    (tmp_path / "coco-2").write_text("")
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco-3"
