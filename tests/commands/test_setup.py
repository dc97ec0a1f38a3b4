"""`lorgnette setup`: the model and its kernels, before the first training."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lorgnette
from lorgnette import LorgnetteError
from lorgnette.errors import UsageError
from lorgnette.kernels import compile_ahead
from lorgnette.report.console import Terminal

PLAYED = """
import json, sys
line = sys.stdin.readline()
open({path!r}, "w").write(line)
open(json.loads(line)["marker"], "w").write(json.dumps(json.loads(line)["slots"]))
print(json.dumps(dict(found=5, compiled=5, error={error!r}, is_done=True)), flush=True)
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """play(error) → the file that gets the request; the machine has a GPU, and nothing is compiled."""

    def play(error: str | None = None) -> Path:
        path = tmp_path / "request.json"
        (tmp_path / "cache").mkdir()
        (tmp_path / "played_process.py").write_text(PLAYED.format(path=str(path), error=error))
        monkeypatch.setattr(compile_ahead, "_PROCESS", "played_process")
        monkeypatch.setattr(compile_ahead, "_has_gpu", lambda: True)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
        return path

    return play


def test_it_compiles_what_a_training_launches_once(play: Callable[..., Path], terminal: Terminal) -> None:
    request_file = play()
    assert lorgnette.setup(model="demo", console=terminal._console, **{"lora.rank": 8}) == 5
    request = json.loads(request_file.read_text())
    assert (request["lora"]["rank"], request["is_trained"]) == (8, True)
    assert request["slots"] == [64, 128, 192, 256, 512, 768, 1024]
    request_file.unlink()
    assert lorgnette.setup(model="demo", console=terminal._console, **{"lora.rank": 8}) == 0
    assert not request_file.exists()
    assert not compile_ahead._compilers


def test_what_cannot_be_compiled_is_an_error(play: Callable[..., Path]) -> None:
    play("no ptxas")
    with pytest.raises(LorgnetteError, match="kernels cannot be compiled: no ptxas"):
        lorgnette.setup(model="demo")
    assert not compile_ahead._compilers


def test_a_process_that_does_not_start_is_not_taken_for_compiled_kernels(
    play: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    play()
    monkeypatch.setattr(sys, "executable", "/none/python")
    with pytest.raises(LorgnetteError, match="cannot start the process that compiles"):
        lorgnette.setup(model="demo")


def test_without_a_gpu_there_is_nothing_to_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_ahead, "_has_gpu", lambda: False)
    for model in ("demo", "Qwen2-VL-2B-Instruct"):  # which is not fetched
        with pytest.raises(LorgnetteError, match="no NVIDIA GPU"):
            lorgnette.setup(model=model)
    for settings in ({"device": "cpu"}, {"engine": "reference"}):
        with pytest.raises(UsageError, match="no kernels to compile"):
            lorgnette.setup(model="demo", **settings)
