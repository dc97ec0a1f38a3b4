"""The manifest names versions, machine and inputs, and no person."""

import json
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from lorgnette.report.manifest import build_manifest, compute_sha256


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
