"""The GPU of this machine is read from nvidia-smi, and its speed is known only if it is."""

import stat
from pathlib import Path

import pytest

from lorgnette.planning.gpus import GPUS, Gpu, find_gpu, find_gpus, parse_gpu


@pytest.mark.parametrize(
    ("line", "gpu"),
    [
        ("NVIDIA H100 80GB, 81559, 80990, 9.0", Gpu("NVIDIA H100 80GB, 79.6 GiB", 80990 / 1024, 989.0, (9, 0))),
        (
            "NVIDIA GeForce RTX 3060, 12288, 11000, 8.6",
            Gpu("NVIDIA GeForce RTX 3060, 12.0 GiB", 11000 / 1024, 25.0, (8, 6)),
        ),
        ("NVIDIA A100-PCIE-40GB, 40960, 40960, 8.0", Gpu("NVIDIA A100-PCIE-40GB, 40.0 GiB", 40.0, 312.0, (8, 0))),
        ("Tesla T4, 15360, 15360, 7.5", Gpu("Tesla T4, 15.0 GiB", 15.0, 65.0, (7, 5))),
        ("NVIDIA RTX 4060 Ti, 16384, 1024, 8.9", Gpu("NVIDIA RTX 4060 Ti, 16.0 GiB", 1.0, 44.0, (8, 9))),
        # Of other speeds than their namesakes.
        ("NVIDIA RTX 3060 Ti, 8192, 8192, 8.6", Gpu("NVIDIA RTX 3060 Ti, 8.0 GiB", 8.0, None, (8, 6))),
        ("NVIDIA RTX 4090 Laptop, 16384, 1024, 8.9", Gpu("NVIDIA RTX 4090 Laptop, 16.0 GiB", 1.0, None, (8, 9))),
        ("NVIDIA H100 PCIe, 81920, 81920, 9.0", Gpu("NVIDIA H100 PCIe, 80.0 GiB", 80.0, None, (9, 0))),
        ("NVIDIA A10G, 23028, 23028, 8.6", Gpu("NVIDIA A10G, 22.5 GiB", 23028 / 1024, None, (8, 6))),
        ("No devices were found", None),
        ("", None),
        ("GPU, [N/A], [N/A], 8.0", None),
    ],
)  # fmt: skip
def test_a_line_of_nvidia_smi(line: str, gpu: Gpu | None) -> None:
    assert parse_gpu(line) == gpu


def test_a_gpu_is_refused_or_computes_in_float16_by_its_capability() -> None:
    refused = {name for name, gpu in GPUS.items() if gpu.obstacle}
    assert refused == {"V100"}
    assert {name for name, gpu in GPUS.items() if not gpu.has_bfloat16} - refused == {"RTX 2080 Ti", "T4"}
    assert parse_gpu("Tesla P100-PCIE-16GB, 16384, 16384, 6.0").obstacle == GPUS["V100"].obstacle


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name that repeats its arguments as the GPU's name, and fails if `broken` lies beside it."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\ntest -e {tmp_path}/broken && exit 9\necho "$* , 1024, 512, 8.0"\necho "2, 9, 9, 8.0"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def test_the_visible_gpus_are_asked_for(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = find_gpus()
    assert [gpu.memory_gib for gpu in gpus] == [0.5, 9 / 1024]
    assert "--id" not in gpus[0].name
    assert find_gpu() == gpus[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert "--id=3,1, 1.0 GiB" in find_gpus()[0].name


def test_without_a_gpu_there_is_none(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpu() is None
    assert find_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (nvidia_smi.parent / "broken").touch()
    assert find_gpu() is None
    nvidia_smi.unlink()
    assert find_gpu() is None
