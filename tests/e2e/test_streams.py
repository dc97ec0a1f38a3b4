"""Streams that are full, closed or abandoned: training goes on, and a result that cannot be written is an error."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")


@pytest.fixture
def run(fork_command: Callable[..., list[str]], tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[bytes]"]:
    def start(*words: object, **streams: Any) -> "subprocess.CompletedProcess[bytes]":
        command = fork_command("lorgnette", *words)
        return subprocess.run(command, cwd=tmp_path, timeout=120, check=False, **streams)

    return start


def open_abandoned_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    "open_stream", [open_abandoned_pipe, pytest.param(lambda: os.open("/dev/full", os.O_WRONLY), marks=needs_full)]
)
def test_a_training_goes_on_without_its_streams(open_stream: Callable[[], int], captions, run, quick, tmp_path) -> None:
    """Without standard error it succeeds. Without standard output it fails at its end, when all is written."""
    stream = open_stream()
    done = run(*quick("run=one"), stdout=subprocess.PIPE, stderr=stream)
    assert (done.returncode, b"report     one" in done.stdout) == (0, True)
    assert run(*quick("run=two"), stdout=stream, stderr=stream).returncode == 1
    os.close(stream)
    for name in ("one", "two"):
        assert (tmp_path / name / "report.html").is_file()
        assert (tmp_path / name / "adapter" / "adapter_model.safetensors").is_file()


@needs_full
@pytest.mark.parametrize(
    "words",
    [["recipe", "list"], ["--help"], ["predict", "0.png", "--model", "demo", "--max-new-tokens", "1"]],
    ids=lambda words: words[0],
)
def test_a_result_that_cannot_be_written_is_an_error(words: list[str], captions, run) -> None:
    with open("/dev/full", "wb") as full:
        done = run(*words, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    message = b"lorgnette: the result cannot be written: No space left on device \xc2\xb7 standard output"
    assert done.stderr.strip().splitlines()[-1].startswith(message), done.stderr
    assert b"Traceback" not in done.stderr
    writer = open_abandoned_pipe()
    done = run(*words, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 1
    assert b"lorgnette: the result cannot be written: Broken pipe" in done.stderr
