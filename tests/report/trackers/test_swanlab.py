import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from lorgnette.errors import UsageError
from lorgnette.report.trackers import swanlab as swanlab_module
from lorgnette.report.trackers.swanlab import SwanlabTracker, select_mode
from lorgnette.report.trackers.tracker import open_trackers
from lorgnette.types import PredictionRow

# Imported in the tests: its import takes long, and every worker collects this file.
pytestmark = pytest.mark.skipif(find_spec("swanlab") is None, reason="swanlab is not installed")
KEY = "a" * 21
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no mode, an empty home and working folder."""
    for name in [name for name in os.environ if name.startswith("SWANLAB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")


def record_run(folder: Path, warnings: list[str]) -> SwanlabTracker:
    """A whole run with two images; one cannot be read."""
    Image.new("RGB", (64, 48), "teal").save(folder / "one.png")
    tracker = SwanlabTracker("lorgnette", "coco", folder, warnings.append)
    tracker.start({"lora": {"r": 64, "targets": ("q", "v")}, "path": folder})
    for step in range(1, 4):
        tracker.log({"train/loss": 1 / step, "train/learning_rate": 1e-4, "train/grad_norm": 2.0}, step)
    tracker.log({"eval/loss": 0.7}, 3)
    rows = [
        PredictionRow("identity_1", (folder / "one.png",), "COCO Yes:", ("一只猫",), "the image", "a cat"),
        PredictionRow("identity_2", (folder / "gone.png",), "COCO Yes:", ("a dog",), None, "a dog"),
    ]
    tracker.log_predictions(rows, 3)
    tracker.log_predictions([], 3)
    tracker.finish()
    return tracker


def test_without_a_key_the_local_dashboard_has_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("swanboard", reason="the dashboard is not installed")
    warnings: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    tracker = record_run(tmp_path, warnings)
    assert tracker.mode == "local"
    assert tracker.address == f"swanlab watch {tmp_path / 'swanlab'}"
    assert warnings == []
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGINT) is before
    assert "SWANLAB_LOG_DIR" not in os.environ
    assert list((tmp_path / "home").rglob("*")) == []

    with closing(sqlite3.connect(tmp_path / "swanlab/runs.swanlab")) as board:
        tags = dict(board.execute("select name, folder from tag").fetchall())
        runs = board.execute("select name, run_id, status from experiment").fetchall()
    assert set(tags) == {
        "train/loss", "train/learning_rate", "train/grad_norm", "eval/loss", "Prediction", "Prediction texts"
    }  # fmt: skip
    ((name, run_id, status),) = runs
    assert (name, status) == ("coco", 1)
    run = tmp_path / "swanlab" / run_id
    lines = [json.loads(line) for line in (run / "logs" / tags["train/loss"] / "1000.log").read_text().splitlines()]
    assert [(line["index"], line["data"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    (images,) = (json.loads(line) for line in (run / "logs" / tags["Prediction"] / "1000.log").read_text().splitlines())
    assert [more["caption"] for more in images["more"]] == ["after: a cat\nreference: 一只猫\nbefore: the image"]
    with Image.open(run / "media" / tags["Prediction"] / images["data"][0]) as image:
        assert image.size == (64, 48)
    assert "64" in (run / "files/config.yaml").read_text()


def test_a_value_that_is_not_finite_does_not_break_its_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """swanboard answers 500 for a metric with a NaN in it, and the whole chart is gone."""
    pytest.importorskip("swanboard", reason="the dashboard is not installed")
    warnings: list[str] = []
    tracker = SwanlabTracker("lorgnette", "coco", tmp_path, warnings.append)
    tracker.start({})
    for step, value in enumerate((1.0, float("nan"), float("inf"), 0.5)):
        tracker.log({"train/loss": value}, step)
    tracker.log({"train/loss": float("nan")}, 4)
    tracker.finish()
    (log,) = (tmp_path / "swanlab").glob("run-*/logs/*/1000.log")
    assert [json.loads(line)["data"] for line in log.read_text().splitlines()] == [1.0, 0.5]
    assert len(warnings) == 1
    assert "train/loss" in warnings[0]


def test_two_runs_of_a_process_are_separate(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        record_run(tmp_path / name, [])
    assert (tmp_path / "one/swanlab").is_dir()
    assert len(list((tmp_path / "two/swanlab").glob("run-*"))) == 1


def test_without_key_dashboard_or_terminal_it_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swanlab_module.importlib.util, "find_spec", lambda name: None)
    warnings: list[str] = []
    tracker = record_run(tmp_path, warnings)
    assert tracker.mode == "offline"
    assert str(tracker.address).startswith(f"swanlab sync {tmp_path / 'swanlab' / 'run-'}")
    assert warnings == []
    (record,) = (tmp_path / "swanlab").glob("run-*/*.swanlab")
    assert b"train/loss" in record.read_bytes()


def test_an_unreachable_host_falls_back_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    monkeypatch.setenv("SWANLAB_API_HOST", DEAD)
    warnings: list[str] = []
    before = time.monotonic()
    tracker = record_run(tmp_path, warnings)
    assert time.monotonic() - before < 10
    assert tracker.mode == "offline"
    assert len(warnings) == 1
    assert "127.0.0.1:9 cannot be reached" in warnings[0]
    assert "swanlab sync" in warnings[0]


def test_a_host_that_does_not_respond_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swanlab_module, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr("requests.head", lambda *_, **__: time.sleep(2))
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    mode, warning = select_mode()
    assert mode == "offline"
    assert "does not respond within 0.2 s" in str(warning)


def test_a_process_without_a_terminal_ends_without_a_prompt(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from lorgnette.report.trackers.tracker import open_trackers\n"
        f"(t,) = open_trackers(['auto'], 'p', Path({str(tmp_path)!r}), print)\n"
        "t.start({'a': 1}); t.log({'train/loss': 1.0}, 1); t.finish(); print(t.address)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.startswith("swanlab ")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_swanlab_mode_selects_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_API_HOST", DEAD)
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    for named in ("local", "offline", "disabled"):
        monkeypatch.setenv("SWANLAB_MODE", named)
        assert select_mode() == (named, None)
    for named in ("cloud", "online"):
        monkeypatch.setenv("SWANLAB_MODE", named)
        mode, warning = select_mode()
        assert mode == "offline"
        assert "cannot be reached" in str(warning)
    monkeypatch.delenv("SWANLAB_API_KEY")
    mode, warning = select_mode()
    assert mode in ("local", "offline")
    assert "no API key" in str(warning)
    monkeypatch.setenv("SWANLAB_MODE", "nonsense")
    with pytest.raises(UsageError, match="SWANLAB_MODE is one of"):
        select_mode()


@pytest.mark.parametrize("mode", [None, "online"])
def test_auto_never_uploads(mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even with an API key: a tracker that uploads is named."""
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    if mode is not None:
        monkeypatch.setenv("SWANLAB_MODE", mode)
    hosts: list[str] = []
    monkeypatch.setattr(swanlab_module, "_find_connection_error", hosts.append)
    assert select_mode() == ("online", None)
    assert len(hosts) == 1
    warnings: list[str] = []
    [tracker] = open_trackers(["auto"], "p", tmp_path, warnings.append)
    started: list[str] = []
    monkeypatch.setattr(SwanlabTracker, "_start_run", lambda self, mode, settings: started.append(mode))
    tracker.start({})
    assert started in (["local"], ["offline"])
    assert len(hosts) == 1, "nothing is asked on the network"
    assert warnings == ["report_to=auto does not upload: SwanLab records on this machine; report_to=swanlab uploads"]


def test_disabled_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "disabled")
    tracker = record_run(tmp_path, [])
    assert tracker.address is None
    assert list((tmp_path / "swanlab").rglob("*")) == []


class Cloud(BaseHTTPRequestHandler):
    """The part of SwanLab's service that a run uses; knows one key."""

    requests: list[tuple[str, str, bytes]]
    is_down = False

    def _respond(self) -> tuple[int, object]:
        if self.is_down:
            return 503, {}
        if self.path == "/api/login/api_key":
            if self.headers.get("authorization") != KEY:
                return 401, {}
            return 200, {"sid": "s", "expiredAt": "2099-01-01T00:00:00.000Z", "userInfo": {"username": "me"}}
        if self.path.endswith("/experiment"):
            return 201, {"cuid": "x1", "slug": "x1", "name": "coco"}
        if self.path == "/api/project/me/lorgnette":
            group, count = {"username": "me"}, {"experiments": 0}
            names = {"cuid": "p1", "name": "lorgnette", "path": "/me/lorgnette", "version": 1}
            return 200, {**names, "group": group, "_count": count}
        return 200, {}

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append((self.command, self.path, body))
        status, answer = self._respond()
        content = b"" if self.command == "HEAD" else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = do_PATCH = _answer  # noqa: N815 - the names http.server calls

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Cloud]]:
    class Fresh(Cloud):
        requests: list[tuple[str, str, bytes]] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("SWANLAB_API_HOST", f"http://127.0.0.1:{server.server_port}")
    yield Fresh
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_refused_key_falls_back(tmp_path: Path, cloud: type[Cloud], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", "b" * 21)
    warnings: list[str] = []
    tracker = record_run(tmp_path, warnings)
    assert tracker.mode == "offline"
    assert len(warnings) == 1
    assert "could not go online" in warnings[0]


def test_with_a_key_it_is_online(tmp_path: Path, cloud: type[Cloud], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    warnings: list[str] = []
    tracker = record_run(tmp_path, warnings)
    assert warnings == []
    assert tracker.mode == "online"
    assert str(tracker.address).endswith("/runs/x1") or "/runs/" in str(tracker.address)
    sent = [json.loads(body) for _, path, body in cloud.requests if path == "/api/house/metrics"]
    assert {batch["type"] for batch in sent} >= {"scalar"}
    assert b"train/loss" in b"".join(body for _, _, body in cloud.requests)


def test_a_network_lost_during_the_run_does_not_delay_the_end(
    tmp_path: Path, cloud: type[Cloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", KEY)
    monkeypatch.setattr(swanlab_module, "FINISH_SECONDS", 1.0)
    warnings: list[str] = []
    tracker = SwanlabTracker("lorgnette", "coco", tmp_path, warnings.append)
    tracker.start({})
    cloud.is_down = True
    before = time.monotonic()
    for step in range(200):
        tracker.log({"train/loss": 1.0}, step)
    assert time.monotonic() - before < 1
    tracker.finish()
    assert time.monotonic() - before < 5
    assert len(warnings) == 1
    assert "still uploading" in warnings[0]
    assert "swanlab sync" in warnings[0]
    cloud.is_down = False  # lets the abandoned thread end and close its files
    for thread in threading.enumerate():
        if thread.name == "lorgnette-timeout":
            thread.join(20)
