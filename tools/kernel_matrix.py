"""Compiles the Triton kernels for every card, without a GPU, and says what they need of it.

    python tools/kernel_matrix.py FILE [--all] [--jobs N]

The launches of every released model (kernel_launches.py) are compiled by Triton and NVIDIA's assembler. Two figures are
compared with the card's limits: shared memory, and bytes of registers that do not fit and spill into memory.
Exits with 1 if a kernel is above a limit, or if no model launches it.

--all: compile everything and write FILE, of which tools/kernels_page.py prints docs/kernels.md. Otherwise each kernel
once a card, at the shape that needs most according to FILE. What FILE has of the same source and the same Triton is not
compiled again.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from kernel_launches import Launch, import_triton, list_fast_sizes, record_launches

from lorgnette.io.atomic import write_json
from lorgnette.kernels import MAX_GROUP_SIZE, MAX_HEAD_DIM
from lorgnette.kernels.record_launches import find_kernels
from lorgnette.kernels.tiles import AttentionTiles, find_tiles
from lorgnette.models.family import ModelSize
from lorgnette.types import Capability

KIB = 1024
WIDEST = "the widest heads"
"""A model that is not released, with as many and as wide heads as the kernels take."""
FLOAT32_MODEL = "Qwen2.5-VL-72B-Instruct"
"""The one with the widest matrices stands for all: float32 is for comparisons."""
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Card:
    """shared_kib: what a program may have (CUDA's programming guide, technical specifications). max_spilled: bytes of a
    thread, a bound of ours. dtypes: those that the fast engine computes in there."""

    names: str
    shared_kib: int
    max_spilled: int = 64
    dtypes: tuple[str, ...] = _DTYPES


CARDS: dict[Capability, Card] = {
    (7, 5): Card("T4, RTX 20", 64, 256, ("float16", "float32")),
    (8, 0): Card("A100", 163),
    (8, 6): Card("RTX 30, A10", 99),
    (8, 9): Card("RTX 40, L4, L40S", 99),
    (9, 0): Card("H100, H200", 227),
    (10, 0): Card("B200", 227),
    (12, 0): Card("RTX 50", 99),
}


class Need(NamedTuple):
    """shared: bytes of a program. registers, spilled: of a thread; the second in bytes."""

    shared: int
    registers: int
    spilled: int


class Task(NamedTuple):
    """A launch to compile for a card."""

    launch: Launch
    capability: Capability

    @property
    def key(self) -> str:
        """What the compiler sees, sources and versions included, as a hash."""
        import triton

        sources = [find_kernels()[name].src for name in list_called(self.launch.kernel)]
        return build_hash((triton.__version__, self, sources))


def build_hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


@cache
def list_called(kernel: str) -> list[str]:
    """The kernel, and the functions of ours that it calls, directly or not."""
    by_name = {name.partition(":")[2]: name for name in find_kernels()}
    source = find_kernels()[kernel].src.partition("(")[2]
    called = [by_name[word] for word in dict.fromkeys(re.findall(r"\w+(?=\()", source)) if word in by_name]
    return list(dict.fromkeys([kernel, *(name for other in called for name in list_called(other))]))


def explain_missing_kernels(tasks: Iterable[Task]) -> list[str]:
    """Kernels that neither are launched nor belong to one that is."""
    launched = {name for kernel in {task.launch.kernel for task in tasks} for name in list_called(kernel)}
    return [f"{kernel}: no model launches it" for kernel in sorted(set(find_kernels()) - launched)]


def list_tasks(sizes: Sequence[ModelSize]) -> dict[Task, list[str]]:
    """Every launch on every card, with the models that have it. Cards of equal tiles share their recordings."""
    recorded: dict[tuple[str, str, AttentionTiles], list[Launch]] = {}
    tasks: dict[Task, list[str]] = {}
    for capability, card in CARDS.items():
        for name, dtype in product(map(name_size, sizes), card.dtypes):
            if dtype == "float32" and name != FLOAT32_MODEL:
                continue
            key = (name, dtype, find_tiles(capability))
            if key not in recorded:
                size = next(size for size in sizes if name_size(size) == name)
                recorded[key] = record_launches(size, dtype, capability)
            for launch in recorded[key]:
                tasks.setdefault(Task(launch, capability), []).append(name)
    return tasks


def name_size(size: ModelSize) -> str:
    return size.names[0].rpartition("/")[2]


def list_sizes() -> list[ModelSize]:
    """The released models, and the one with the widest heads."""
    sizes = list_fast_sizes()
    return [*sizes, _widen_heads(next(size for size in sizes if "head_dim" in size.config.get("text_config", ())))]


def _widen_heads(size: ModelSize) -> ModelSize:
    """The same model with the most heads per key-value head, of the largest width."""
    text, half = size.config["text_config"], MAX_HEAD_DIM // 2
    rope = text["rope_scaling"] | {"mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    heads = {"num_attention_heads": MAX_GROUP_SIZE, "num_key_value_heads": 1, "head_dim": MAX_HEAD_DIM}
    return ModelSize((WIDEST,), {**size.config, "text_config": {**text, **heads, "rope_scaling": rope}})


def compile_launch(task: Task) -> Need:
    """Compile, and read from the machine code what the program needs."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch, (major, minor) = task
    constants, attributes = dict(launch.constants), {path: json.loads(value) for path, value in launch.attributes}
    source = ASTSource(find_kernels()[launch.kernel], dict(launch.signature), constants, attributes)
    target = GPUTarget("cuda", 10 * major + minor, 32)
    compiled = triton.compile(source, target=target, options=dict(launch.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [str(program), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = _USAGE.search(usage)
    assert match, usage
    return Need(compiled.metadata.shared, int(match[1]), int(match[2]))


def compile_tasks(tasks: Sequence[Task], known: Mapping[str, Need], jobs: int) -> Iterator[tuple[Task, Need]]:
    """What each needs, in order; what is known is not compiled."""
    unknown = [task for task in tasks if task.key not in known]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        compiled = pool.imap(compile_launch, unknown)
        for task in tasks:
            yield task, known[task.key] if task.key in known else next(compiled)


def find_excess(task: Task, need: Need) -> str | None:
    """What is above the card's limits; None if nothing is."""
    card, name = CARDS[task.capability], f"{task.launch.kernel} on {format_capability(task.capability)}"
    if need.shared > card.shared_kib * KIB:
        return f"{name}: {need.shared / KIB:.1f} of {card.shared_kib} KiB shared memory"
    if need.spilled > card.max_spilled:
        return f"{name}: {need.spilled} bytes a thread spilled, {card.max_spilled} allowed"
    return None


def read_known(path: Path) -> dict[str, Need]:
    """What the file has by the keys of its tasks."""
    if not path.exists():
        return {}
    needs = [need for entry in json.loads(path.read_text())["launches"] for need in entry["needs"].values()]
    return {key: Need(*numbers) for *numbers, key in needs}


def find_largest(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The file's launch that needs most, by kernel and capability: first shared memory, then spilled registers."""
    largest: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in json.loads(path.read_text())["launches"]:
        for capability, (shared, registers, spilled, _) in entry["needs"].items():
            key, need = (entry["kernel"], capability), (shared, spilled, registers)
            if key not in largest or need > largest[key]["need"]:
                largest[key] = {"need": need, "id": entry["id"], "models": entry["models"]}
    return largest


def choose_models(groups: Iterable[Sequence[str]]) -> set[str]:
    """Few models of which each group has one."""
    left, chosen = [set(group) for group in groups], set[str]()
    while left:
        names = sorted({name for group in left for name in group})
        best = max(names, key=lambda name: sum(name in group for group in left))
        chosen.add(best)
        left = [group for group in left if best not in group]
    return chosen


def choose_tasks(tasks: Iterable[Task], largest: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Task]:
    """One for each kernel and card: the largest, or the one with the largest constants if that is not known."""
    chosen: dict[tuple[str, str], tuple[tuple[bool, int], Task]] = {}
    for task in tasks:
        key = (task.launch.kernel, format_capability(task.capability))
        constants = [value for value in task.launch.list_constants().values() if isinstance(value, int)]
        rank = (largest.get(key, {}).get("id") == build_hash(task.launch), math.prod(filter(None, constants)))
        if key not in chosen or rank > chosen[key][0]:
            chosen[key] = rank, task
    return [task for _, task in chosen.values()]


def compile_all(path: Path, jobs: int) -> list[str]:
    """Compile every launch on every card and write the file. Returns what does not fit."""
    import triton

    tasks, entries, problems = list_tasks(list_sizes()), dict[Launch, dict[str, Any]](), list[str]()
    for done, (task, need) in enumerate(compile_tasks(list(tasks), read_known(path), jobs), 1):
        entry = entries.setdefault(task.launch, describe(task.launch) | {"models": tasks[task], "needs": {}})
        entry["needs"][format_capability(task.capability)] = [*need, task.key]
        problems += filter(None, [find_excess(task, need)])
        if done % 100 == 0 or done == len(tasks):
            print(f"{done} of {len(tasks)} compiled", flush=True)
    models, launches = list(map(name_size, list_sizes())), list(entries.values())
    functions = sorted(find_kernels())
    write_json(path, {"triton": triton.__version__, "models": models, "functions": functions, "launches": launches})
    return problems + explain_missing_kernels(tasks)


def compile_largest(path: Path, jobs: int) -> list[str]:
    """Compile each kernel once a card. Returns what does not fit."""
    largest = find_largest(path)
    models = choose_models([entry["models"] for entry in largest.values()])
    tasks = list_tasks([size for size in list_sizes() if name_size(size) in models])
    chosen = choose_tasks(tasks, largest)
    known = read_known(path)
    print(f"{len(chosen)} kernels and cards, {sum(task.key not in known for task in chosen)} of them not known")
    problems = [find_excess(task, need) for task, need in compile_tasks(chosen, known, jobs)]
    return [*filter(None, problems), *explain_missing_kernels(tasks)]


def describe(launch: Launch) -> dict[str, Any]:
    """For the file."""
    return {
        "kernel": launch.kernel, "id": build_hash(launch), "dtype": launch.dtype,
        "constants": launch.list_constants(), "options": dict(launch.options),
    }  # fmt: skip


def format_capability(capability: Capability) -> str:
    return ".".join(map(str, capability))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    import_triton()
    problems = (compile_all if arguments.all else compile_largest)(arguments.file, arguments.jobs)
    print("\n".join(problems))
    sys.exit(bool(problems))
