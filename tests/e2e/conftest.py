"""A data set of drawn pictures, and the command line in a process of its own."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

COLOURS = ["red", "green", "blue", "yellow", "black", "white", "magenta", "cyan"]
WORDS = ["a red car", "two dogs on a couch", "a man with a hat", "snow", "a plate", "the blue cat", "bees", "one tree"]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """A CSV of 16 rows on 8 pictures, each of one colour."""
    for i, colour in enumerate(COLOURS):
        PIL.Image.new("RGB", (90, 70), colour).save(tmp_path / f"{i}.png")
    path = tmp_path / "captions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        rows.writerows([f"{i % 8}.png", f"{WORDS[i % 8]} {'again' * (i // 8)}".strip()] for i in range(16))
    return path


@pytest.fixture
def lorgnette(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """lorgnette("train", …) → the finished process, run in tmp_path."""

    def run(*words: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False
        )

    return run


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """started("train", …) → the running process."""

    def start(*words: object) -> "subprocess.Popen[str]":
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command(*words), cwd=tmp_path, env=environment(), text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    return start


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lorgnette", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
