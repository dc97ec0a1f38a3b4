"""A process counts the cores that it is granted, and those that share them divide them."""

import os
from pathlib import Path

import pytest

from lorgnette.io import cores
from lorgnette.io.cores import count_cores


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (None, [16, 16, 10, 1]),  # a machine of 40 cores: at most 16 for each process
        ("max 100000\n", [16, 16, 10, 1]),
        ("2400000 100000\n", [16, 12, 6, 1]),  # a container's share of it
        ("250000 100000\n", [2, 1, 1, 1]),
    ],
)
def test_processes_divide_the_cores(
    quota: str | None, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(40)), raising=False)
    monkeypatch.setattr(cores, "_QUOTA", file := tmp_path / "cpu.max")
    if quota is not None:
        file.write_text(quota)
    assert [count_cores(), *map(count_cores, (2, 4, 64))] == expected
