"""GPUs that people own: their memory, their published speed, and the one in this machine. Needs no torch."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal, get_args

GpuName = Literal[
    "T4", "RTX 3060", "RTX 3090", "RTX 4090", "RTX 5090", "L4", "A10", "L40S", "A100 40 GB", "A100", "H100", "H200"
]
GPU_NAMES: tuple[GpuName, ...] = get_args(GpuName)
MIN_COMPUTE_CAPABILITY = 8.0
"""The first one with bfloat16, Ampere's."""
_VARIANTS = {"Laptop", "Ti", "SUPER", "D", "PCIe", "PCIE", "NVL"}
_NVIDIA_SMI_SECONDS = 10
_MIB_PER_GIB = 1024
_QUERY = "name,memory.total,memory.free,compute_cap"


@dataclass(frozen=True, slots=True)
class Gpu:
    """memory_gib: what nvidia-smi reports, or what of it is free. tflops: published dense bf16 peak with fp32 sums
    (NVIDIA's data sheets), or None if it is not known. obstacle: why lorgnette does not support it."""

    name: str
    memory_gib: float
    tflops: float | None
    obstacle: str = ""


_NO_BFLOAT16 = "not supported: it has no bfloat16"
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 15.0, None, _NO_BFLOAT16),
        Gpu("RTX 3060", 12.0, 25.0),
        Gpu("RTX 3090", 24.0, 71.0),
        Gpu("RTX 4090", 24.0, 165.0),
        Gpu("RTX 5090", 31.8, 209.0),
        Gpu("L4", 22.5, 121.0),
        Gpu("A10", 22.5, 125.0),
        Gpu("L40S", 45.0, 362.0),
        Gpu("A100 40 GB", 40.0, 312.0),
        Gpu("A100", 80.0, 312.0),
        Gpu("H100", 79.6, 989.0),
        Gpu("H200", 140.4, 989.0),
    )
}


def find_gpu() -> Gpu | None:
    """The first GPU that CUDA_VISIBLE_DEVICES shows, with its free memory; None if nvidia-smi reports none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or visible in ("", "-1"):
        return None
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    command += [f"--id={visible.split(',')[0]}"] if visible else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)  # noqa: S603 - a fixed query
    except (OSError, subprocess.SubprocessError):
        return None  # a driver that does not answer has no GPU for torch either
    return parse_gpu(done.stdout.partition("\n")[0])


def parse_gpu(line: str) -> Gpu | None:
    """A line of nvidia-smi: name, total and free memory in MiB, compute capability. None if it is not such a line."""
    try:
        name, total, free, capability = (part.strip() for part in line.rsplit(",", 3))
        memory_gib, is_supported = int(free) / _MIB_PER_GIB, float(capability) >= MIN_COMPUTE_CAPABILITY
    except ValueError:
        return None
    title = f"{name}, {int(total) / _MIB_PER_GIB:.1f} GiB"
    return Gpu(title, memory_gib, _find_tflops(name), "" if is_supported else _NO_BFLOAT16)


def _find_tflops(name: str) -> float | None:
    """The peak of the known GPU with this name. None for a variant of another speed, such as "RTX 4090 Laptop"."""
    words = re.sub("[^0-9A-Za-z]+", " ", name).split()
    if not _VARIANTS.isdisjoint(words) and "A100" not in words:
        return None
    return next((gpu.tflops for title, gpu in GPUS.items() if f" {title} " in f" {' '.join(words)} "), None)
