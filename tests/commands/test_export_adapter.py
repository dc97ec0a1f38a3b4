"""`export-adapter` writes an adapter for a version of transformers, and overwrites nothing."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lorgnette.commands.export_adapter import export_adapter
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.lora.metadata import METADATA_FILE
from lorgnette.lora.peft_config import CONFIG_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE


def test_names_follow_the_version(saved: Path, tmp_path: Path, cli: Any) -> None:
    for version, is_old in (("4.46.2", True), ("4.51", True), ("4.52.0", False), ("5.23", False)):
        out = tmp_path / version
        done = cli("export-adapter", saved, out, "--transformers", version)
        assert done.status == 0, done.err
        assert "28 tensors with the names" in " ".join(done.out.split())
        assert {path.name for path in out.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, METADATA_FILE}
        assert all(("language_model" not in name) == is_old for name in load_file(out / WEIGHTS_FILE))


def test_a_run_stands_for_its_adapter(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run" / "adapter")
    (tmp_path / "run" / "config.yaml").touch()
    assert export_adapter(tmp_path / "run", tmp_path / "out", transformers="4.46.2").is_dir()


def test_what_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no version · --transformers old · write it as 4\.46\.2"):
        export_adapter(saved, tmp_path / "out", transformers="old")
    with pytest.raises(UsageError, match="the output folder exists"):
        export_adapter(saved, saved, transformers="4.46.2")
    with pytest.raises(UsageError, match="an empty folder, not an adapter"):
        export_adapter(tmp_path, tmp_path / "out", transformers="4.46.2")
    broken = shutil.copytree(saved, tmp_path / "broken")
    (broken / CONFIG_FILE).write_text("{}")
    with pytest.raises(LorgnetteError, match="peft_type is None"):
        export_adapter(broken, tmp_path / "out", transformers="4.46.2")
    assert not (tmp_path / "out").exists()
