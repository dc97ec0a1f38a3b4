"""The process that compiles the kernels of a command: a dry run lists them, and forked processes compile them.

    python -m lorgnette.inference.compile_worker

Reads one line, a `KernelRequest` and the marker to write as JSON. Writes lines of JSON: kernels found and compiled, the
first error or null, and whether that was the last line. It ends when its standard input ends, and its processes with
it. No process initializes a device or runs a kernel.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Thread
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_text
from lorgnette.io.cores import count_cores
from lorgnette.io.parse import parse_json
from lorgnette.kernels.compile_ahead import KernelRequest, read_marker
from lorgnette.types import Capability

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, …_MINOR."""


def find_capabilities() -> list[Capability]:
    """Of the GPUs that this process sees, each once; the driver alone is asked. None without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, found = ctypes.c_int(), list[Capability]()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        found.append((major.value, minor.value))
    return list(dict.fromkeys(found))


class Report:
    """What the command is told, a line at a time. found: kernels to compile; error: the first."""

    def __init__(self) -> None:
        self.found = self.compiled = 0
        self.error: str | None = None
        self._output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for whatever a compiler prints

    def send(self, *, is_done: bool = False) -> None:
        values = {"found": self.found, "compiled": self.compiled, "error": self.error, "is_done": is_done}
        self._output.write(json.dumps(values) + "\n")
        self._output.flush()


def list_launches(request: KernelRequest, capability: Capability) -> list[tuple[str, str]]:
    """Every kernel of a request and Triton's specialization data, each once; the longest kernels first."""
    import torch

    from lorgnette.config import LoraSettings
    from lorgnette.device import select_dtype
    from lorgnette.inference import dry_run
    from lorgnette.kernels.record_launches import find_kernels, record_launches
    from lorgnette.models.adapter_shape import AdapterShape
    from lorgnette.models.base_checkpoint import BaseCheckpoint
    from lorgnette.models.registry import parse_configs
    from lorgnette.models.weight_loader import list_nf4_modules

    launches: dict[tuple[str, str], None] = {}

    def add(kernel: str, details: Mapping[str, Any]) -> None:
        launches[kernel, details["specialization_data"]] = None

    checkpoint = BaseCheckpoint.from_folder(Path(request.model)).quantize(request.quantization)
    text, vision = parse_configs(checkpoint.load_hf_config())
    nf4_modules = list_nf4_modules(checkpoint)
    lora = None if request.lora is None else LoraSettings.model_validate(request.lora)
    shape = AdapterShape.empty(text) if lora is None else AdapterShape.from_settings(text, lora)
    with record_launches(capability, add):
        dtype = select_dtype(request.dtype, torch.device("cuda"))
        dry_run.run_tower(vision, dtype)
        if lora is not None and request.is_trained:
            dry_run.run_training(shape, dtype, lora.dropout, nf4_modules)
        dry_run.run_answers(shape, dtype, request.slots, nf4_modules)
        if nf4_modules:
            dry_run.run_nf4(text, shape.rank, dtype)
    return sorted(launches, key=lambda launch: -len(find_kernels()[launch[0]].src))


def compile_request(request: KernelRequest, capabilities: Iterable[Capability], report: Report) -> None:
    """Compile everything of a request, for GPUs of these capabilities, in forked processes."""
    from lorgnette.kernels.record_launches import compile_driver, compile_launch, prepare_compiler

    tasks = [(*launch, capability) for capability in capabilities for launch in list_launches(request, capability)]
    report.found = len(tasks)
    report.send()
    prepare_compiler(capabilities)
    with ProcessPoolExecutor(min(count_cores(), len(tasks)), multiprocessing.get_context("fork")) as pool:
        driver = pool.submit(compile_driver)
        for future in as_completed([pool.submit(compile_launch, *task) for task in tasks]):
            future.result()
            report.compiled += 1
            report.send()
        driver.result()


def end_with_command() -> None:
    """End this process and those that it has forked when standard input ends: the command has ended."""
    while os.read(0, 1):  # not through sys.stdin: a process that is forked closes it, and would wait for its lock
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Called in a process group of its own."""
    report = Report()
    from lorgnette.kernels.record_launches import prepare_compiler

    # What the forked processes share. It takes seconds, in which the command finds out what it needs.
    with ThreadPoolExecutor(1) as pool:
        search = pool.submit(find_capabilities)
        pool.submit(lambda: prepare_compiler(search.result()))  # an error comes again when it is called again
        import lorgnette.inference.dry_run  # noqa: F401
    found = search.result()
    if not (line := sys.stdin.buffer.readline()):
        return
    Thread(target=end_with_command, daemon=True).start()
    try:
        fields = parse_json(line)
        marker = Path(fields.pop("marker"))
        if not found:
            raise LorgnetteError("its driver shows no GPU", where="libcuda.so.1", hint="`nvidia-smi` says more")
        request = KernelRequest(**fields)
        compile_request(request, found, report)
        write_text(marker, json.dumps(sorted({*request.slots, *(read_marker(marker) or ())})))
    except Exception as error:  # whatever it is, the command says it and goes on
        report.error = f"{type(error).__name__}: {error}"
    report.send(is_done=True)


if __name__ == "__main__":
    main()
