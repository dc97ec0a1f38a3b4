"""What a training asks of the processes that compile, and what its user reads."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorgnette.kernels import compile_ahead
from lorgnette.report.console import Terminal
from lorgnette.report.stage_timer import StageTimer
from lorgnette.training.kernel_stage import compile_kernels_ahead, request_kernels, wait_for_kernels

PLAYED = """
import json, sys
line = sys.stdin.readline()
open({path!r}, "w").write(line)
answers = [(3, 1, None, False), (3, 3, None, False), (3, 3, {error!r}, True)]
for found, compiled, error, is_done in answers:
    print(json.dumps(dict(found=found, compiled=compiled, error=error, is_done=is_done)), flush=True)
"""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """play(error) → the file that gets the request; the machine has a GPU, and nothing is compiled."""

    def play(error: str | None = None) -> Path:
        path = tmp_path / "request.json"
        (tmp_path / "played_process.py").write_text(PLAYED.format(path=str(path), error=error))
        monkeypatch.setattr(compile_ahead, "_PROCESS", "played_process")
        monkeypatch.setattr(compile_ahead, "_has_gpu", lambda: True)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
        return path

    yield play
    compile_ahead.stop()


def test_a_training_asks_for_its_kernels_and_shows_how_many_are_compiled(
    play: Callable[..., Path], training_data: Callable[..., Any], terminal: Terminal, terminal_output: io.StringIO
) -> None:
    request_file = play()
    settings, data = training_data("device=auto", "lora.dropout=0.25", "dtype=float16")
    with compile_kernels_ahead(settings):
        request_kernels(settings, data)
        wait_for_kernels(StageTimer(terminal), terminal)
        wait_for_kernels(StageTimer(terminal), terminal)  # says nothing more
    request = json.loads(request_file.read_text())
    assert request["model"] == str(data.checkpoint.folder.resolve())
    assert (request["dtype"], request["lora"]["dropout"], request["lora"]["rank"]) == ("float16", 0.25, 2)
    assert request["slots"] == [64]
    assert request["is_trained"]
    lines = [line for line in terminal_output.getvalue().splitlines() if line.startswith("kernels")]
    assert lines[0] == "kernels    compiles 3 for this GPU, once"
    assert len(lines) == 2  # and the seconds
    assert compile_ahead.get_compiler() is None


def test_the_user_learns_once_that_kernels_are_compiled_one_after_another(
    play: Callable[..., Path], training_data: Callable[..., Any], terminal: Terminal, terminal_output: io.StringIO
) -> None:
    play("no ptxas")
    settings, data = training_data("device=auto")
    with compile_kernels_ahead(settings):
        request_kernels(settings, data)
        for _ in range(2):
            wait_for_kernels(StageTimer(terminal), terminal)
    assert terminal_output.getvalue().count("no ptxas") == 1
    assert not compile_ahead._compilers


@pytest.mark.parametrize("words", [["device=cpu"], ["engine=reference"], ["lora.parts=language,vision"]])
def test_nothing_is_compiled_where_no_kernel_of_ours_runs(
    words: list[str],
    play: Callable[..., Path],
    training_data: Callable[..., Any],
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play()
    settings, data = training_data("device=auto", *words)
    with compile_kernels_ahead(settings):
        request_kernels(settings, data)
        assert not compile_ahead._compilers


def test_of_ranks_on_a_machine_the_first_compiles(
    play: Callable[..., Path], training_data: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    play()
    settings, data = training_data("device=auto")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with compile_kernels_ahead(settings):
        request_kernels(settings, data)
        assert not compile_ahead._compilers
