"""The dashboard of a run: served where there is one, a sentence where there is none."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from lorgnette.commands.watch import watch
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.trackers.tracker import is_installed, open_trackers


def run_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text("model: demo\n")
    return path


def test_no_run_and_no_tracking_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run folder"):
        watch(tmp_path / "none")
    with pytest.raises(LorgnetteError, match="not tracked by SwanLab"):
        watch(run_folder(tmp_path / "run"))


@pytest.mark.skipif(not is_installed("swanboard"), reason="needs SwanLab's dashboard")
def test_it_serves_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "local")
    folder = run_folder(tmp_path / "run")
    for tracker in open_trackers(["swanlab"], project="p", experiment="watched", folder=folder, warn=print):
        tracker.start({"a": 1})
        tracker.log({"train/loss": 1.0}, 1)
        tracker.finish()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "lorgnette", "watch", str(folder), "--port", str(port)]
    served = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert "watched" in asked(f"http://127.0.0.1:{port}/api/v1/project")
    finally:
        subprocess.run(["pkill", "-INT", "-g", str(served.pid)], check=False)
        served.wait(20)


def asked(address: str) -> str:
    deadline = time.monotonic() + 40
    while True:
        try:
            with urllib.request.urlopen(address) as answer:
                return answer.read().decode()  # type: ignore[no-any-return]
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.2)
