"""The processes that compile, as a command sees them."""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from lorgnette.kernels import compile_ahead
from lorgnette.kernels.compile_ahead import KernelRequest, find_marker, get_compiler, read_marker
from lorgnette.resolve import BUILT_IN_MODEL

REQUEST = KernelRequest(str(BUILT_IN_MODEL), "auto", {"rank": 16}, quantization=None, slots=(192,))
ANSWERS = '{{"found": 2, "compiled": {}, "error": {}, "is_done": {}}}'
COMPILES = f"""
import json, sys
fields = json.loads(sys.stdin.readline())
print('{ANSWERS.format(1, "null", "false")}', flush=True)
open(fields["marker"], "w").write(json.dumps(fields["slots"]))
print('{ANSWERS.format(2, "null", "true")}', flush=True)
"""
FAILS = f"""print('{ANSWERS.format(0, '"no ptxas"', "true")}')"""
DIES = "import os; os._exit(3)"
HANGS = """
import subprocess, time
subprocess.Popen(["sleep", "1000"])
print("started", flush=True)
time.sleep(1000)
"""


@pytest.fixture(autouse=True)
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a GPU and an empty cache."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(compile_ahead, "_has_gpu", lambda: True)
    yield
    compile_ahead.stop()


def play(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run this script as the process that compiles."""
    (tmp_path / "played_process.py").write_text(script)
    monkeypatch.setattr(compile_ahead, "_PROCESS", "played_process")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_everything_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(COMPILES, tmp_path, monkeypatch)
    compile_ahead.start("auto", "auto")
    assert get_compiler() is None  # nothing is requested yet
    compile_ahead.request(REQUEST)
    compiler = get_compiler()
    assert compiler
    compile_ahead.wait()
    assert (compiler.found, compiler.compiled, compiler.error) == (2, 2, None)
    compile_ahead.stop()
    assert find_marker(REQUEST).exists()

    other = replace(REQUEST, slots=(192, 256))
    compile_ahead.request(other)  # not all of it is compiled
    assert get_compiler()
    compile_ahead.wait()
    compile_ahead.stop()
    assert find_marker(other) == find_marker(REQUEST)

    monkeypatch.setattr(compile_ahead, "KernelCompiler", lambda: pytest.fail("a process was started"))
    compile_ahead.start("auto", "auto")
    compile_ahead.request(REQUEST)
    assert get_compiler() is None
    compile_ahead.wait()


@pytest.mark.parametrize("content", [b"", b"[192", b"192", b"[[1]]", b"\xff"])
def test_a_damaged_marker_is_none(content: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    assert read_marker(marker) is None
    marker.write_bytes(content)
    assert read_marker(marker) is None
    marker.write_bytes(b"[192, 256]")
    assert read_marker(marker) == {192, 256}


@pytest.mark.parametrize(("script", "error"), [(FAILS, "no ptxas"), (DIES, "their process ended with status 3")])
def test_a_process_that_fails_ends_the_wait(
    script: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(script, tmp_path, monkeypatch)
    compile_ahead.request(REQUEST)
    compiler = get_compiler()
    assert compiler
    compile_ahead.wait()
    assert compiler.error == error
    assert not find_marker(REQUEST).exists()


def test_stop_ends_what_the_process_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(HANGS, tmp_path, monkeypatch)
    compile_ahead.start("auto", "auto")
    [compiler] = compile_ahead._compilers
    assert compiler._answers.readline() == b"started\n"
    group = compiler._process.pid
    compile_ahead.stop()
    deadline = time.monotonic() + 60  # a process that has ended is in its group until it is reaped
    while is_alive(group):
        assert time.monotonic() < deadline


def test_settings_that_want_no_kernels_end_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(HANGS, tmp_path, monkeypatch)
    compile_ahead.start("auto", "auto")
    [compiler] = compile_ahead._compilers
    compile_ahead.start("cuda", "fast")
    assert compile_ahead._compilers == [compiler], "it is the one that was started"
    compile_ahead.start("cpu", "auto")
    assert not compile_ahead._compilers
    assert compiler._process.returncode is not None


def test_a_thread_that_waits_learns_that_the_command_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(HANGS.replace('print("started", flush=True)', ""), tmp_path, monkeypatch)
    compile_ahead.request(REQUEST)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(compile_ahead.wait)
        time.sleep(0.05)  # either way it is told
        assert not waiting.done()
        compile_ahead.stop()
        assert waiting.result(60) is False
    assert compile_ahead.wait()


def test_a_marker_is_for_one_request_one_source_and_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = find_marker(REQUEST)
    assert marker == find_marker(replace(REQUEST))
    others = [
        replace(REQUEST, dtype="float16"), replace(REQUEST, lora={"rank": 8}),
        replace(REQUEST, is_trained=False), replace(REQUEST, quantization="nf4"),
    ]  # fmt: skip
    assert len({marker, *map(find_marker, others)}) == 1 + len(others)

    card = tmp_path / "cards" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t NVIDIA H100 80GB HBM3\nIRQ: 17\n")
    monkeypatch.setattr(compile_ahead, "_CARDS", tmp_path / "cards")
    on_card = find_marker(REQUEST)
    assert on_card != marker
    (card / "information").write_text("Model: \t NVIDIA H100 80GB HBM3\nIRQ: 18\n")
    assert find_marker(REQUEST) == on_card

    package = tmp_path / "package"
    (package / "kernels").mkdir(parents=True)
    (package / "kernels" / "swiglu.py").write_text("a = 1")
    monkeypatch.setattr(compile_ahead, "_PACKAGE", package)
    before = find_marker(REQUEST)
    (package / "kernels" / "swiglu.py").write_text("a = 10")
    assert find_marker(REQUEST) != before
