"""A server in a process of its own: it says when it answers, and a signal ends its open answers with an error."""

import base64
import json
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ENDLESS = {"model": "base", "stream": True, "max_completion_tokens": 7000, "temperature": 2.0, "seed": 1}


@pytest.fixture
def server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_process: Callable[..., "subprocess.Popen[str]"]
) -> Iterator["subprocess.Popen[str]"]:
    """Of the built-in model; its uploads are in `temporary`."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    process = start_process("serve", "demo", "--port", 0, "--device", "cpu")
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_open_answers_with_an_error(
    number: signal.Signals, captions: Path, tmp_path: Path, server: "subprocess.Popen[str]"
) -> None:
    assert server.stdout is not None
    printed: dict[str, str] = {}
    while "ready" not in printed:
        line = server.stdout.readline()
        assert line, printed  # it has ended
        name, _, printed[name] = line.strip().partition(" ")
    api = printed["API"].split(",")[0].strip()

    temporary = tmp_path / "temporary"
    # An answer that goes on, about an image that was uploaded.
    image = base64.b64encode((tmp_path / "0.png").read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    body = json.dumps({**ENDLESS, "messages": [{"role": "user", "content": [part]}]}).encode()
    request = urllib.request.Request(f"{api}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert b"assistant" in stream.readline()
        assert len([path for path in temporary.rglob("*") if path.is_file()]) == 1
        server.send_signal(number)
        events = [line for line in stream.read().split(b"\n\n") if line]
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == "closed"
    rest, _ = server.communicate(timeout=60)
    assert (server.returncode, rest) == (128 + number, "stopped\n")
    assert list(temporary.iterdir()) == []


def test_a_port_that_is_taken(cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        cli("serve", "demo", "--port", port, "--device", "cpu").assert_refused(1, f"port {port} is taken")
