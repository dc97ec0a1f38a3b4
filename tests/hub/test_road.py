"""The tutorial's recipe in one command, from an empty folder and two stand-in hubs to the report; killed at any moment
and started again it ends with the same adapter, and nothing is fetched twice."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROWS, MODEL, NAME = 40, "Qwen/Qwen2-VL-2B-Instruct", "modelscope/coco_2014_caption"
SCRIPT = """
import datasets
_URL = {"train": "%s/coco/2014/train.csv.zip", "validation": "%s/coco/2014/train.csv.zip"}
class Coco(datasets.GeneratorBasedBuilder):
    def _info(self):
        raise RuntimeError("nobody executes a data set's script")
"""
WORDS = [
    "train", "coco-caption", f"data.max_rows={ROWS}", "image_size=56", "lora.rank=4", "train.save_steps=2",
    "train.logging_steps=1", "train.epochs=3", "predict.max_new_tokens=4", "report_to=none", "run=run",
]  # fmt: skip


@pytest.fixture
def hubs(hub: Any, tiny: Path, zipped: Callable[..., bytes], picture: Callable[..., bytes]) -> Any:
    """ModelScope with the tutorial's data set, as a script lies there; Hugging Face with a small Qwen2-VL."""
    lines = [",uniq_id,image_id,caption,image"]
    for row in range(3 * ROWS):
        path = f"/coco/2014/train2014/COCO_train2014_{row:012d}.jpg"
        hub.put(path, picture(row))
        lines.append(f"{row},{row},{row},caption {row} 图,{hub.url}{path}")
    hub.put("/coco/2014/train.csv.zip", zipped(**{"train.csv": "\n".join(lines) + "\n"}))
    files = {"coco_2014_caption.py": (SCRIPT % (hub.url, hub.url)).encode(), "README.md": b"# COCO"}
    hub.repo("modelscope", "datasets", NAME, files)
    hub.repo("hf", "models", MODEL, {path.name: path.read_bytes() for path in tiny.iterdir()})
    return hub


def started(folder: Path) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    home = {"HF_HOME": str(folder / "hf"), "MODELSCOPE_CACHE": str(folder / "ms"), "OMP_NUM_THREADS": "1"}
    words = ["train", "--resume", "run"] if (folder / "run").exists() else WORDS
    command = [sys.executable, "-m", "lorgnette", *words]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **home}, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def finished(folder: Path) -> tuple[str, str]:
    """(hash of the adapter, what was messages)"""
    process = started(folder)
    messages = process.communicate(timeout=200)[1]
    assert process.returncode == 0, messages
    assert (folder / "run" / "report.html").is_file()
    return hashlib.sha256((folder / "run" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(), messages


def killed(folder: Path, when: Callable[[], bool]) -> None:
    process = started(folder)
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.003)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def pictures(hubs: Any) -> int:
    return len(hubs.words(".jpg"))


@pytest.fixture
def whole(hubs: Any, tmp_path: Path) -> str:
    """The adapter of a run that nobody disturbed."""
    adapter, messages = finished(tmp_path / "whole")
    assert f"{ROWS} pictures" in messages
    assert " MB; " in messages
    assert pictures(hubs) == ROWS  # of three times as many
    return adapter


def test_killed_at_any_moment_and_started_again(hubs: Any, whole: str, tmp_path: Path) -> None:
    folder, run = tmp_path / "broken", tmp_path / "broken" / "run"
    fetched = pictures(hubs)
    listed = len(hubs.log)
    killed(folder, lambda: len(hubs.log) > listed)  # while the data set is listed
    killed(folder, lambda: pictures(hubs) >= fetched + 10)  # while pictures come
    killed(folder, lambda: any((folder / "hf").rglob("*.part*")) or any((folder / "hf").rglob("blobs/*")))  # weights
    killed(folder, (run / "checkpoints" / "step-000002").exists)  # in training
    killed(folder, (run / "adapter").exists)  # while the answers are made
    adapter, _ = finished(folder)
    assert adapter == whole
    in_flight = 8  # pictures on their way at each of the two kills that may fall among them
    assert pictures(hubs) - fetched <= ROWS + 2 * in_flight


def test_a_second_run_fetches_nothing(hubs: Any, whole: str, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    (folder / "run").rename(folder / "first")
    served = hubs.served
    adapter, messages = finished(folder)
    assert adapter == whole
    assert pictures(hubs) == ROWS
    assert hubs.served == served
    assert "fetched    0 files, 0.0 MB" in messages
