from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.run_dir import RunDir, find_free_path


def test_everything_has_its_place(tmp_path: Path) -> None:
    folder = RunDir.create(tmp_path / "runs" / "coco")
    places = [
        folder.config, folder.manifest, folder.adapter, folder.checkpoints, folder.log, folder.predictions, folder.report
    ]  # fmt: skip
    names = "config.yaml manifest.json adapter checkpoints log.jsonl predictions.jsonl report.html"
    assert [place.name for place in places] == names.split()
    assert {place.parent for place in places} == {tmp_path / "runs" / "coco"}
    assert folder.path.is_dir()


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    folder = RunDir.create(tmp_path / "coco")
    RunDir.create(tmp_path / "coco")  # still empty
    folder.log.write_text("")
    with pytest.raises(UsageError, match=r"exists.*lorgnette train --resume"):
        RunDir.create(tmp_path / "coco")


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "coco").write_text("")
    with pytest.raises(LorgnetteError, match="cannot be made"):
        RunDir.create(tmp_path / "coco")


def test_only_a_run_folder_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run folder"):
        RunDir.open_existing(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"no config\.yaml"):
        RunDir.open_existing(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    assert RunDir.open_existing(tmp_path) == RunDir(tmp_path)


def test_a_number_stands_before_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "compare.html").touch()
    assert find_free_path(tmp_path, "compare", ".html") == tmp_path / "compare-2.html"


def test_the_next_free_name(tmp_path: Path) -> None:
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco"
    (tmp_path / "coco").mkdir()
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco"
    (tmp_path / "coco" / "x").write_text("")
    (tmp_path / "coco-2").write_text("")
    assert find_free_path(tmp_path, "coco") == tmp_path / "coco-3"
