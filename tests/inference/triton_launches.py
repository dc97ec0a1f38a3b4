"""A process for test_compile_worker.py: compiles kernels ahead, or launches them as Triton does and counts misses.

    python triton_launches.py compile        standard input and output of lorgnette.inference.compile_worker
    python triton_launches.py launch         reads KernelRequests as JSON; writes how many kernels each compiled
    python triton_launches.py sizes          runs other sizes than the dry run; writes the kernels that it has not

The GPU is played: its driver answers as one would, and its launches do nothing.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from lorgnette.config import LoraSettings
from lorgnette.engine.loading import allocate_decoder
from lorgnette.engine.open_for_training import warm_up_decoder
from lorgnette.inference import compile_worker, dry_run
from lorgnette.inference.generator import Generator
from lorgnette.inference.kv_cache import CacheShape, KVCache
from lorgnette.kernels import record_launches
from lorgnette.kernels.compile_ahead import KernelRequest
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.family import ModelSize
from lorgnette.models.networks import find_tower_class
from lorgnette.models.registry import FAMILIES, find_unsupported_feature, parse_configs
from lorgnette.processing.packing import pack
from lorgnette.training.kernel_stage import round_slots
from lorgnette.types import Capability, Image, ImageGrid

CAPABILITY = (9, 0)
META = torch.device("meta")


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
    """Kernels, and C functions that launch them, that Triton compiles when all of the request is launched; and how many
    of the modules with a stand-in were imported all the same."""
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
        compile_worker.list_launches(request, CAPABILITY)
    return misses | {"imported": sum(name in sys.modules for name in record_launches.PLAIN_MODULES)}


def list_forgotten(size: ModelSize) -> dict[str, list[str]]:
    """By what is run: kernels that Triton compiles for it, and not for the dry run. As a control a batch of labels
    alone, whose last layer has all tokens but one for queries."""
    text, vision = parse_configs(size.config)
    shape = AdapterShape.from_settings(replace(text, num_layers=2), LoraSettings())
    small = replace(vision, depth=1, deepstack_blocks=(0,) if vision.deepstack_blocks else ())

    def train(num_tokens: int, num_labels: int) -> None:
        batch = pack([dry_run._build_example(num_tokens, num_labels)], num_labels)
        warm_up_decoder(shape, [batch], dry_run._FEATURES, torch.bfloat16, LoraSettings().dropout)

    def answer(rows: int, num_tokens: int, slots: int = 256) -> None:
        decoder, _ = allocate_decoder(shape, META, torch.bfloat16)
        FlatLoraParams(shape, META).attach(decoder)
        generator = Generator(decoder, dry_run._FEATURES)
        cache = KVCache.from_config(CacheShape(rows, slots), shape.text, META, torch.bfloat16)
        generator.prefill_rows(cache, [0], [dry_run._build_example(num_tokens, 0)], use_adapter=True)
        generator.decode_step(cache, cache.input_ids[:0], use_adapter=True)

    def see(height: int, width: int) -> None:
        tower_class = find_tower_class(vision.model_type)
        weights, _ = tower_class.allocate_weights(small, META, torch.bfloat16)
        patches = torch.zeros(height * width, small.patch_dim, device=META, dtype=torch.bfloat16)
        grid = ImageGrid(Image(Path("image")), 1, height, width, vision.merge_size)
        tower_class(small, weights)([grid], patches)

    def record(function: Callable[..., None], *arguments: Any) -> set[tuple[str, str]]:
        launches = set[tuple[str, str]]()
        with record_launches.record_launches(CAPABILITY, lambda *seen: launches.add(_name_launch(*seen))):
            function(*arguments)
        return launches

    known = record(dry_run.run_training, shape, torch.bfloat16, LoraSettings().dropout)
    known |= record(dry_run.run_answers, shape, torch.bfloat16, (256, round_slots(320))) | record(
        dry_run.run_tower, vision, torch.bfloat16
    )
    # The modules for which `record_launches` has stand-ins: with them the same is launched.
    for name in record_launches.PLAIN_MODULES:
        importlib.import_module(name)
    runs = [(train, 500, 100), (answer, 1, 256), (see, 16, 16)]
    runs += [(train, 333, 7), (train, 4000, 2500), (train, 100, 1), (answer, 1, 33), (answer, 33, 64), (see, 2, 2)]
    runs += [(answer, 8, 40, 320), (answer, 8, 40, 448), (see, 6, 10), (train, 70, 66)]
    return {
        f"{function.__name__} {arguments}": sorted({kernel for kernel, _ in record(function, *arguments) - known})
        for function, *arguments in runs
    }


def _name_launch(kernel: str, details: Mapping[str, Any]) -> tuple[str, str]:
    return kernel, details["specialization_data"]


if __name__ == "__main__":
    if sys.argv[1] == "sizes":
        sizes = [size for family in FAMILIES.values() for size in family.sizes]
        fast = [size for size in sizes if find_unsupported_feature(size.config) is None]
        by_type = {size.config["model_type"]: size for size in fast}
        sys.stdout.write(json.dumps({name: list_forgotten(size) for name, size in by_type.items()}))
    elif sys.argv[1] == "compile":
        compile_worker.find_capabilities = lambda: [CAPABILITY]
        compile_worker.main()
    else:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(count_misses(KernelRequest(**json.loads(line)))) + "\n")
            sys.stdout.flush()
