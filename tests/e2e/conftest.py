"""A data set of plain images, and the command line in a process of its own."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest

COLORS = ["red", "green", "blue", "yellow", "black", "white", "magenta", "cyan"]
WORDS = ["a red car", "two dogs on a couch", "a man with a hat", "snow", "a plate", "the blue cat", "bees", "one tree"]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """A CSV of 16 rows and 8 images, each of one color."""
    return write_captions(tmp_path)


def write_captions(folder: Path) -> Path:
    for i, color in enumerate(COLORS):
        PIL.Image.new("RGB", (90, 70), color).save(folder / f"{i}.png")
    path = folder / "captions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        rows.writerows([f"{i % 8}.png", f"{WORDS[i % 8]} {'again' * (i // 8)}".strip()] for i in range(16))
    return path


@pytest.fixture
def lorgnette(
    tmp_path: Path, fork_command: Callable[..., list[str]]
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """lorgnette("train", …) → the finished process, run in tmp_path. It is forked: see tests/fork_server.py."""
    return lambda *words: run_to_end(fork_command("lorgnette", *words), tmp_path)


@pytest.fixture
def lorgnette_process(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The same in a process that starts from nothing, as a user's does."""
    return lambda *words: run_to_end(command(*words), tmp_path)


def run_to_end(words: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def start_process(tmp_path: Path, fork_command: Callable[..., list[str]]) -> Callable[..., "subprocess.Popen[str]"]:
    """start_process("train", …) → the running process. A signal to it reaches its program (tests/fork_server.py)."""

    def start(*words: object) -> "subprocess.Popen[str]":
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        forked = fork_command("lorgnette", *words)
        return subprocess.Popen(forked, cwd=tmp_path, env=environment(), text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    return start


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lorgnette", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture
def quick(tiny: Path) -> Callable[..., list[str]]:
    """quick("train.learning_rate=1", run="other") → the words of a training of two steps."""

    def words(*more: str, **top: object) -> list[str]:
        given = {"model": tiny, "data": "captions.csv", "run": "run", **top}
        return [
            "train", *(f"{name}={value}" for name, value in given.items()), "image_size=28", "lora.rank=2",
            "train.batch_size=8", "train.epochs=1", "train.save_steps=1", "report_to=none",
            "predict.max_new_tokens=2", "data.holdout=2", *more,
        ]  # fmt: skip

    return words


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """volume("size=200k") → a file system of its own, mounted with these options; again: with others."""
    folder = tmp_path / "volume"

    def mount(options: str) -> Path:
        again = "remount," if folder.is_mount() else ""
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", again + options, "none", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"needs to mount a small file system: {done.stderr.strip()}")
        return folder

    try:
        yield mount
    finally:
        if folder.is_mount():
            subprocess.run(["umount", "--lazy", folder], check=True)
