"""The manifest names versions, machine and inputs, and no person."""

import json
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lorgnette.report import manifest as manifest_module
from lorgnette.report.manifest import build_manifest, compute_sha256, read_manifest


def test_it_names_versions_machine_and_inputs(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"abc")
    before = datetime.now(UTC).replace(microsecond=0)
    manifest = build_manifest(
        seed=42,
        command=["/opt/bin/lorgnette", "train", "my images.csv"],
        device="NVIDIA H100",
        hashes={"data.csv": compute_sha256(tmp_path / "data.csv")},
    )
    started = datetime.fromisoformat(str(manifest["started"]))
    assert before <= started <= datetime.now(UTC)
    assert started.isoformat(timespec="seconds") == manifest["started"]
    assert str(manifest["started"]).endswith("+00:00")
    assert manifest["command"] == "lorgnette train 'my images.csv'"
    assert manifest["sha256"] == {"data.csv": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    text = json.dumps(manifest)
    versions, machine = manifest["versions"], manifest["machine"]
    assert isinstance(versions, dict)
    assert isinstance(machine, dict)
    assert versions["python"] == platform.python_version()
    assert versions["torch"]
    assert machine["device"] == "NVIDIA H100"
    assert machine["cores"] > 0
    assert machine["cpu"]
    assert socket.gethostname() not in text


def test_it_names_the_gpus_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_NVIDIA_DRIVER", tmp_path)
    assert build_manifest(seed=0, command=[])["machine"]["gpus"] == []  # type: ignore[index]
    for slot, name in (("0000:01", "NVIDIA H100 80GB HBM3"), ("0000:02", "Tesla T4")):
        (tmp_path / "gpus" / slot).mkdir(parents=True)
        (tmp_path / "gpus" / slot / "information").write_text(f"Model: \t\t {name}\nIRQ: \t 17\nGPU UUID: \t GPU-1\n")
    machine = build_manifest(seed=0, command=[])["machine"]
    assert machine["gpus"] == ["NVIDIA H100 80GB HBM3", "Tesla T4"]  # type: ignore[index]
    assert "GPU-1" not in str(machine)  # it would name this machine


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"seed": 1, "seed": 2}'])
def test_a_damaged_manifest_is_read_as_empty(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    assert read_manifest(tmp_path / "manifest.json") == {}
    (tmp_path / "manifest.json").write_bytes(b'{"seed": 1}')
    assert read_manifest(tmp_path / "manifest.json") == {"seed": 1}


def test_the_home_folder_is_hidden() -> None:
    home = str(Path.home())
    manifest = build_manifest(
        seed=1,
        command=["lorgnette", "train", f"{home}/images.csv"],
        hashes={f"{home}/images.csv": "0"},
        image_hashes={f"{home}/a.png": "1"},
    )
    assert manifest["images"] == {"~/a.png": "1"}
    assert home not in json.dumps(manifest)
    assert "~/images.csv" in str(manifest["command"])


def test_nothing_heavy_is_imported() -> None:
    """Neither by the manifest nor by the rest of report/."""
    code = (
        "import sys, lorgnette.report.manifest as m, lorgnette.report.html.page, lorgnette.report.trackers.tracker, "
        "lorgnette.report.run_log, lorgnette.report.run_dir\n"
        "m.build_manifest(seed=1, command=[])\n"
        "heavy = {'torch', 'transformers', 'peft', 'swanlab', 'wandb', 'tensorboard'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
