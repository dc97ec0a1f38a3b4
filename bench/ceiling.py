"""Print as JSON what this machine is, the fastest it multiplies, and how fast its host launches kernels.

The product is 8192³ in bf16, the median of 50; the launch is peers/host.py's.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent / "peers"))
from host import launch_us

N = 8192


def matmul_tflops() -> float:
    """On random data: zeros multiply faster."""
    left, right = (torch.randn(N, N, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(20):
        left @ right
    seconds = []
    for _ in range(50):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        left @ right
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return 2 * N**3 / statistics.median(seconds) / 1e12


def machine() -> dict[str, object]:
    if not torch.cuda.is_available():
        return {"gpu": None, "cores": os.cpu_count(), "torch": torch.__version__, "matmul_tflops": None,
                "launch_us": None}  # fmt: skip
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "driver": driver,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "matmul_tflops": round(matmul_tflops(), 1),
        "launch_us": launch_us(),
    }


if __name__ == "__main__":
    print(json.dumps(machine()))
