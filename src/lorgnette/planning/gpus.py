"""GPUs that people own: their memory, their published speed, and the one in this machine. Needs no torch."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal, get_args

from lorgnette.errors import UsageError
from lorgnette.types import AMPERE, TURING, Capability

GpuName = Literal[
    "RTX 3070", "RTX 4060", "RTX 2080 Ti", "RTX 3060", "RTX 5070", "V100", "T4", "RTX 4060 Ti 16 GB", "RTX 4080",
    "RTX 3090", "RTX 4090", "RTX 5090", "L4", "A10", "L40S", "A100 40 GB", "A100", "H100", "H200",
]  # fmt: skip
GPU_NAMES: tuple[GpuName, ...] = get_args(GpuName)
_VARIANTS = {"Laptop", "Ti", "SUPER", "D", "PCIe", "PCIE", "NVL"}
_NVIDIA_SMI_SECONDS = 10
_MIB_PER_GIB = 1024
_LINKS = {(9, 0): 325e9, AMPERE: 215e9}  # NVLink in servers; an A100's is assumed by the ratio of the published rates
_PCIE_BYTES_PER_S = 10e9
_QUERY = "name,memory.total,memory.free,compute_cap"


@dataclass(frozen=True, slots=True)
class Gpu:
    """memory_gib: what nvidia-smi reports, or what of it is free. tflops: published dense peak in half precision with
    fp32 sums (NVIDIA's data sheets and white papers), or None if it is not known. capability: None if it is not known.
    """

    name: str
    memory_gib: float
    tflops: float | None
    capability: Capability | None = None

    @property
    def obstacle(self) -> str:
        """Why lorgnette does not support it."""
        return "not supported: older than Turing" if self.capability and self.capability < TURING else ""

    @property
    def has_bfloat16(self) -> bool:
        """Whether it computes bfloat16, as far as is known."""
        return self.capability is None or self.capability >= AMPERE

    @property
    def link_bytes_per_s(self) -> float:
        """Of a ring of such GPUs that sums a vector: measured on H100 with NVLink, assumed elsewhere."""
        return _LINKS.get(self.capability or TURING, _PCIE_BYTES_PER_S)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("RTX 3070", 8.0, 41.0, (8, 6)),
        Gpu("RTX 4060", 8.0, 30.0, (8, 9)),
        Gpu("RTX 2080 Ti", 11.0, 54.0, (7, 5)),
        Gpu("RTX 3060", 12.0, 25.0, (8, 6)),
        Gpu("RTX 5070", 11.9, 62.0, (12, 0)),
        Gpu("V100", 16.0, 125.0, (7, 0)),
        Gpu("T4", 15.0, 65.0, (7, 5)),
        Gpu("RTX 4060 Ti 16 GB", 16.0, 44.0, (8, 9)),
        Gpu("RTX 4080", 16.0, 97.0, (8, 9)),
        Gpu("RTX 3090", 24.0, 71.0, (8, 6)),
        Gpu("RTX 4090", 24.0, 165.0, (8, 9)),
        Gpu("RTX 5090", 31.8, 209.0, (12, 0)),
        Gpu("L4", 22.5, 121.0, (8, 9)),
        Gpu("A10", 22.5, 125.0, (8, 6)),
        Gpu("L40S", 45.0, 362.0, (8, 9)),
        Gpu("A100 40 GB", 40.0, 312.0, (8, 0)),
        Gpu("A100", 80.0, 312.0, (8, 0)),
        Gpu("H100", 79.6, 989.0, (9, 0)),
        Gpu("H200", 140.4, 989.0, (9, 0)),
    )
}


def find_gpu() -> Gpu | None:
    """The first of `find_gpus`; None if there is none."""
    return next(iter(find_gpus()), None)


def find_gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES shows, with their free memory; none if nvidia-smi reports none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or visible in ("", "-1"):
        return []
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    command += [f"--id={visible}"] if visible else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)  # noqa: S603 - a fixed query
    except (OSError, subprocess.SubprocessError):
        return []  # a driver that does not answer has no GPU for torch either
    return [gpu for line in done.stdout.splitlines() if (gpu := parse_gpu(line))]


def count_gpus(gpus: int | str | None) -> int:
    """How many are to train together, whether this machine has them or not. Raises as `parse_num_gpus`."""
    number = parse_num_gpus(gpus)
    return max(len(find_gpus()), 1) if number is None else number


def parse_num_gpus(gpus: int | str | None) -> int | None:
    """The number of `gpus=`; None for `all`. gpus: as of `train`; None: 1. Raises UsageError for what is no number."""
    if gpus is None or gpus == "all":
        return 1 if gpus is None else None
    if not (str(gpus).isdecimal() and int(gpus) > 0):
        raise UsageError("no number of GPUs", where=f"gpus={gpus}", hint="write a number, 1 or more, or gpus=all")
    return int(gpus)


def parse_gpu(line: str) -> Gpu | None:
    """A line of nvidia-smi: name, total and free memory in MiB, compute capability. None if it is not such a line."""
    try:
        name, total, free, capability = (part.strip() for part in line.rsplit(",", 3))
        memory_gib, (major, minor) = int(free) / _MIB_PER_GIB, map(int, capability.split("."))
    except ValueError:
        return None
    title = f"{name}, {int(total) / _MIB_PER_GIB:.1f} GiB"
    return Gpu(title, memory_gib, _find_tflops(name), (major, minor))


def _find_tflops(name: str) -> float | None:
    """The peak of the known GPU with this name. None for a variant of another speed, such as "RTX 4090 Laptop"."""
    words = re.sub("[^0-9A-Za-z]+", " ", name).split()
    for title, gpu in GPUS.items():
        known = title.partition(" 16 GB")[0]
        variants = _VARIANTS.intersection(words).difference(known.split())
        if f" {known} " in f" {' '.join(words)} " and (not variants or known.startswith("A100")):
            return gpu.tflops
    return None
