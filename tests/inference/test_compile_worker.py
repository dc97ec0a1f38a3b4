"""What is compiled ahead is what Triton looks up at a launch: by its own code, up to the launch itself."""

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from triton_interpreter import NEEDS_TRITON, TRITON

from lorgnette.config import LoraSettings
from lorgnette.kernels.compile_ahead import KernelRequest
from lorgnette.resolve import BUILT_IN_MODEL

HELPER = Path(__file__).with_name("triton_launches.py")
REQUEST = KernelRequest(
    str(BUILT_IN_MODEL), "auto", LoraSettings().model_dump(mode="json"), quantization=None, slots=(192,)
)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An empty cache, a driver's library without a driver, and a compiler in a hurry."""
    names = re.findall(r"\bcu[A-Z]\w+", (_find_triton() / "backends" / "nvidia" / "driver.c").read_text())
    stubs = [f"int {name}(void) {{ return 1; }}" for name in sorted({*names, "cuPointerGetAttribute", "cuInit"})]
    (tmp_path / "stubs.c").write_text("\n".join(stubs))
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "stubs.c")], check=True)
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nexec gcc "$@" -O0\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    return {
        **os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_LIBCUDA_PATH": str(tmp_path),
        "LD_LIBRARY_PATH": str(tmp_path), "CC": str(compiler), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TRITON), *filter(None, sys.path)]),
    }  # fmt: skip


def _find_triton() -> Path:
    if TRITON.is_dir():
        return TRITON / "triton"
    spec = importlib.util.find_spec("triton")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent


def _start(what: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-P", str(HELPER), what]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True)


def _compile(request: KernelRequest, marker: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """What the process says."""
    with _start("compile", environment) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps({**asdict(request), "marker": str(marker)}) + "\n")
        process.stdin.flush()
        return [json.loads(line) for line in process.stdout]


def _launch(requests: Sequence[KernelRequest], environment: dict[str, str]) -> list[dict[str, int]]:
    with _start("launch", environment) as process:
        output, _ = process.communicate("".join(json.dumps(asdict(request)) + "\n" for request in requests))
    return [json.loads(line) for line in output.splitlines()]


@NEEDS_TRITON
def test_a_launch_finds_what_was_compiled_ahead(tmp_path: Path, environment: dict[str, str]) -> None:
    marker = tmp_path / "marker"
    *_, last = _compile(REQUEST, marker, environment)
    found = last["found"]
    assert last == {"found": found, "compiled": found, "error": None, "is_done": True}
    assert found > 20
    assert json.loads(marker.read_text()) == [192]
    # The control: caches of another length have a constant of their own.
    same, other = _launch([REQUEST, replace(REQUEST, slots=(1024,))], environment)
    assert same == {"kernels": 0, "functions": 0, "launched": found, "imported": 0}
    assert other["kernels"] == 2


@NEEDS_TRITON
def test_the_dry_run_stands_for_all_sizes(environment: dict[str, str]) -> None:
    with _start("sizes", environment) as process:
        output, _ = process.communicate()
    for runs in json.loads(output).values():
        *others, (control, kernels) = runs.items()
        assert not [run for run in others if run[1]], others
        assert kernels == ["attention:_attention_bwd_dq_kernel", "attention:_attention_fwd_kernel"], control


def _start_empty() -> "subprocess.Popen[bytes]":
    """The process without what it forks."""
    script = "import sys, types; name = 'lorgnette.inference.dry_run'; sys.modules[name] = types.ModuleType(name); "
    script += "from lorgnette.inference.compile_worker import main; main()"
    command = [sys.executable, "-P", "-c", script]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)


def test_a_process_that_cannot_compile_says_why() -> None:
    with _start_empty() as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"{}\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
    assert answer == {"found": 0, "compiled": 0, "error": "KeyError: 'marker'", "is_done": True}


def test_the_process_ends_with_its_command() -> None:
    with _start_empty() as process:
        output, _ = process.communicate(timeout=60)  # closes its standard input, as when the command is killed
    assert (output, process.returncode) == (b"", 0)


def test_without_a_driver_there_is_no_gpu() -> None:
    script = "from lorgnette.inference.compile_worker import find_capabilities; print(find_capabilities())"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == b"[]\n"
