import json
import platform
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

from lorgnette.report.manifest import build_manifest, compute_sha256


def test_it_names_versions_machine_and_inputs(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"abc")
    started = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=8)))
    made = build_manifest(
        seed=42,
        command=["/opt/bin/lorgnette", "train", "my pictures.csv"],
        device="NVIDIA H100",
        hashes={"data.csv": compute_sha256(tmp_path / "data.csv")},
        started=started,
    )
    assert made["started"] == "2026-01-01T19:04:05+00:00"
    assert made["command"] == "lorgnette train 'my pictures.csv'"
    assert made["sha256"] == {"data.csv": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    text = json.dumps(made)
    versions, machine = made["versions"], made["machine"]
    assert isinstance(versions, dict)
    assert isinstance(machine, dict)
    assert versions["python"] == platform.python_version()
    assert versions["torch"]
    assert machine["device"] == "NVIDIA H100"
    assert machine["cores"] > 0
    assert machine["cpu"]
    assert socket.gethostname() not in text


def test_people_stay_out_of_it() -> None:
    home = str(Path.home())
    made = build_manifest(
        seed=1, command=["lorgnette", "train", f"{home}/pictures.csv"], hashes={f"{home}/pictures.csv": "0"}
    )
    assert home not in json.dumps(made)
    assert "~/pictures.csv" in str(made["command"])


def test_nothing_heavy_is_imported() -> None:
    """Neither by the manifest nor by the room as a whole."""
    code = (
        "import sys, lorgnette.report.manifest as m, lorgnette.report.html.page, lorgnette.report.trackers.tracker, "
        "lorgnette.report.run_log, lorgnette.report.run_dir\n"
        "m.manifest(seed=1, command=[])\n"
        "heavy = {'torch', 'transformers', 'peft', 'swanlab', 'wandb', 'tensorboard'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
