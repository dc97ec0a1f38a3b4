"""The tutorial's recipe in one command, from an empty folder and two stand-in hubs to the report.

Killed at any moment and started again it ends with the same adapter, and nothing is fetched twice.
"""

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[[Path], "subprocess.Popen[str]"]
ROWS, MODEL, NAME = 40, "Qwen/Qwen2-VL-2B-Instruct", "modelscope/coco_2014_caption"
SCRIPT = """
import datasets
_URL = {"train": "%s/coco/2014/train.csv.zip", "validation": "%s/coco/2014/train.csv.zip"}
class Coco(datasets.GeneratorBasedBuilder):
    def _info(self):
        raise RuntimeError("a data set's script is never executed")
"""
WORDS = [
    "train", "coco-caption", f"data.max_rows={ROWS}", "image_size=56", "lora.rank=4", "train.save_steps=2",
    "train.logging_steps=1", "train.epochs=3", "predict.max_new_tokens=4", "report_to=none", "run=run",
]  # fmt: skip


@pytest.fixture
def hubs(hub: Any, tiny: Path, zipped: Callable[..., bytes], jpeg: Callable[..., bytes]) -> Any:
    """ModelScope with the tutorial's data set, as a script; Hugging Face with a small Qwen2-VL."""
    lines = [",uniq_id,image_id,caption,image"]
    for row in range(3 * ROWS):
        path = f"/coco/2014/train2014/COCO_train2014_{row:012d}.jpg"
        hub.put(path, jpeg(row))
        lines.append(f"{row},{row},{row},caption {row} 图,{hub.url}{path}")
    hub.put("/coco/2014/train.csv.zip", zipped(**{"train.csv": "\n".join(lines) + "\n"}))
    files = {"coco_2014_caption.py": (SCRIPT % (hub.url, hub.url)).encode(), "README.md": b"# COCO"}
    hub.repo("modelscope", "datasets", NAME, files)
    hub.repo("hf", "models", MODEL, {path.name: path.read_bytes() for path in tiny.iterdir()})
    return hub


@pytest.fixture
def start(fork_command: Callable[..., list[str]]) -> Start:
    """start(folder) → the running command, with caches in the folder; it resumes the folder's run if there is one."""

    def start(folder: Path) -> "subprocess.Popen[str]":
        folder.mkdir(exist_ok=True)
        environment = {**os.environ, "HF_HOME": str(folder / "hf"), "MODELSCOPE_CACHE": str(folder / "ms")}
        words = ["train", "--resume", "run"] if (folder / "run").exists() else WORDS
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(fork_command("lorgnette", *words), cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    return start


def run_to_end(start: Start, folder: Path) -> tuple[str, str]:
    """(hash of the adapter, messages)"""
    process = start(folder)
    messages = process.communicate(timeout=200)[1]
    assert process.returncode == 0, messages
    assert (folder / "run" / "report.html").is_file()
    return hashlib.sha256((folder / "run" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(), messages


def kill(start: Start, folder: Path, when: Callable[[], bool]) -> None:
    process = start(folder)
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.003)
    process.kill()
    process.communicate()


def count_images(hubs: Any) -> int:
    return len(hubs.requests(".jpg"))


@pytest.fixture
def whole(hubs: Any, start: Start, tmp_path: Path) -> str:
    """The adapter of a run without interruption."""
    adapter, messages = run_to_end(start, tmp_path / "whole")
    assert f"{ROWS} images" in messages
    assert " MB; " in messages
    assert count_images(hubs) == ROWS  # of three times as many
    return adapter


def test_a_run_killed_at_any_moment_resumes(hubs: Any, whole: str, start: Start, tmp_path: Path) -> None:
    folder, run = tmp_path / "broken", tmp_path / "broken" / "run"
    fetched = count_images(hubs)
    listed = len(hubs.log)
    kill(start, folder, lambda: len(hubs.log) > listed)  # while the data set is listed
    kill(start, folder, lambda: count_images(hubs) >= fetched + 10)  # while images arrive
    kill(
        start, folder, lambda: any((folder / "hf").rglob("*.part*")) or any((folder / "hf").rglob("blobs/*"))
    )  # weights
    kill(start, folder, (run / "checkpoints" / "step-000002").exists)  # in training
    kill(start, folder, (run / "adapter").exists)  # while the answers are generated
    adapter, _ = run_to_end(start, folder)
    assert adapter == whole
    in_flight = 8  # images on their way at each of the two kills that may fall among them
    assert count_images(hubs) - fetched <= ROWS + 2 * in_flight


def test_a_second_run_fetches_nothing(hubs: Any, whole: str, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    (folder / "run").rename(folder / "first")
    served = hubs.served
    adapter, messages = run_to_end(start, folder)
    assert adapter == whole
    assert count_images(hubs) == ROWS
    assert hubs.served == served
    assert "fetched    0 files, 0.0 MB" in messages
