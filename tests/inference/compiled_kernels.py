"""A process for test_compile_kernels.py: compiles kernels ahead, or launches them as Triton does and counts misses.

    python compiled_kernels.py compile        standard input and output of lorgnette.inference.compile_kernels
    python compiled_kernels.py launch         reads KernelRequests as JSON; writes how many kernels each compiled

The GPU is played: its driver answers as one would, and its launches do nothing.
"""

import json
import sys
from typing import Any
from unittest.mock import patch

from lorgnette.inference import compile_kernels
from lorgnette.kernels import record_launches
from lorgnette.kernels.compile_ahead import KernelRequest
from lorgnette.types import Capability

CAPABILITY = (9, 0)


class StandInUtils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 2**20}

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 1024


def stand_in_launcher(source: Any, metadata: Any) -> Any:
    from triton.backends.nvidia.driver import CudaLauncher

    CudaLauncher(source, metadata)
    return lambda *_: None


class StandInDriver(record_launches.CompileDriver):
    utils = StandInUtils()
    launcher_cls = staticmethod(stand_in_launcher)


def count_misses(request: KernelRequest) -> dict[str, int]:
    """Kernels, and C functions that launch them, that Triton compiles when all of the request is launched."""
    from triton import knobs
    from triton.runtime import build, driver

    misses = {"kernels": 0, "functions": 0, "launched": 0}

    def listen(*, cache_hit: bool, **_: object) -> None:
        misses["kernels"] += not cache_hit
        misses["launched"] += 1

    def build_and_count(*arguments: Any) -> str:
        misses["functions"] += 1
        return plain_build(*arguments)

    def record(capability: Capability, on_launch: record_launches.OnLaunch) -> Any:
        driver.set_active(StandInDriver(capability))
        for kernel in record_launches.find_kernels().values():
            kernel.device_caches.clear()
        return record_launches.pretend_gpu(capability)

    plain_build = build._build
    with (
        patch.object(knobs.compilation, "listener", listen),
        patch.object(build, "_build", build_and_count),
        patch.object(record_launches, "record_launches", record),
    ):
        compile_kernels.list_launches(request, CAPABILITY)
    return misses


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        compile_kernels.find_capabilities = lambda: [CAPABILITY]
        compile_kernels.main()
    else:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(count_misses(KernelRequest(**json.loads(line)))) + "\n")
            sys.stdout.flush()
