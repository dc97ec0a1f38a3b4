"""`watch` serves the dashboard of a run, or says why it cannot."""

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


def make_run_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text("model: demo\n")
    return path


def test_no_run_and_an_untracked_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run"):
        watch(tmp_path / "none")
    with pytest.raises(LorgnetteError, match="SwanLab did not track this run"):
        watch(make_run_folder(tmp_path / "run"))
    (tmp_path / "run" / "journal.jsonl").touch()
    with pytest.raises(LorgnetteError, match="its page shows how far it is: lorgnette teach --run"):
        watch(tmp_path / "run")


@pytest.mark.skipif(not is_installed("swanboard"), reason="needs SwanLab's dashboard")
def test_it_serves_the_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "local")
    folder = make_run_folder(tmp_path / "watched")
    for tracker in open_trackers(["swanlab"], "p", folder, print):
        tracker.start({"a": 1})
        tracker.log({"train/loss": 1.0}, 1)
        tracker.finish()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lorgnette", "watch", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert "watched" in wait_for_answer(f"http://127.0.0.1:{port}/api/v1/project")
    finally:
        subprocess.run(["pkill", "-INT", "-g", str(server.pid)], check=False)
        server.wait(20)


def wait_for_answer(address: str) -> str:
    deadline = time.monotonic() + 40
    while True:
        try:
            with urllib.request.urlopen(address) as response:
                return response.read().decode()  # type: ignore[no-any-return]
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.2)
