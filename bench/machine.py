"""Print this machine as JSON: its GPU, its bf16 matmul rate, and the time its host needs to launch a kernel.

The product is 8192³ in bf16, the median of 50; peers/launch.py measures the launch.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parent / "peers"))
from launch import measure_launch_us

N = 8192
HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
"""Without a GPU the benchmarks only show that they run."""


def name_device() -> str:
    return torch.cuda.get_device_name() if HAS_GPU else "CPU"


def synchronize() -> None:
    if HAS_GPU:
        torch.cuda.synchronize()


def time_seconds(work: Callable[[], Any]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def measure_matmul_tflops() -> float | None:
    """On random data, since zeros multiply faster. None without a GPU."""
    if not HAS_GPU:
        return None
    left, right = (torch.randn(N, N, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(20):
        left @ right
    seconds = []
    for _ in range(50):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        left @ right
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return 2 * N**3 / statistics.median(seconds) / 1e12


def describe_machine() -> dict[str, object]:
    if not HAS_GPU:
        return {"gpu": None, "cores": os.cpu_count(), "torch": torch.__version__, "matmul_tflops": None,
                "launch_us": None}  # fmt: skip
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "driver": driver,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "matmul_tflops": round(measure_matmul_tflops() or 0.0, 1),
        "launch_us": measure_launch_us(),
    }


if __name__ == "__main__":
    print(json.dumps(describe_machine()))
