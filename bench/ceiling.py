"""Print as JSON what this machine is, and the fastest it multiplies: 8192³ in bf16, the median of 50 products."""

import json
import os
import platform
import statistics
import subprocess

import torch

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
        return {"gpu": None, "cores": os.cpu_count(), "torch": torch.__version__, "matmul_tflops": None}
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
    }


if __name__ == "__main__":
    print(json.dumps(machine()))
