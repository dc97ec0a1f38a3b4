"""Prints docs/kernels.md from the file that `make test-kernels` writes."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernel_matrix import CARDS, FLOAT32_MODEL, KIB, WIDEST, Card, format_capability

from lorgnette.kernels import MAX_HEAD_DIM
from lorgnette.kernels.tiles import find_tiles

Launch = Mapping[str, Any]
"""An entry of the file."""
RESULTS = Path(__file__).parent / "kernel_matrix.json"
_HEADER = """# Kernels and cards

The fast engine's Triton kernels are for NVIDIA GPUs of compute capability 7.5 and later. A kernel can be compiled for a
card without having it. `make test-kernels` records what the engine launches for each released model, compiles it with
Triton and NVIDIA's assembler, and holds it against the card's limits. `make docs` prints this page from the result.
**A card on this page is compiled for, not tried**; [speed.md](speed.md) says on which ones lorgnette was measured.

A kernel does not start if it needs more shared memory than the card gives to a program. Registers that do not fit are
kept in memory ("spilled"): the kernel is correct and slower.
"""
_COMPILED = """With Triton {triton}: {programs:,} programs, from {launches} launches of {num_models} models ({models})
and of one with the most and the widest heads that the kernels take; in float32 of {float32_model} alone.
"""
_T4 = """On 7.5 Triton multiplies without tensor cores. So attention takes a larger part of a step there, above all with
long examples; all other products are cuBLAS's and use them. This is not measured.

The reference engine trains a model whose heads are wider than 128, or that has more than 32 query heads per key-value
head.
"""
_KERNELS = """The most that any launch of a released model needs: shared memory in KiB, and behind a + the bytes that a
thread spills. 0 is less than half a KiB.
"""
_SHAPES = """The kernels with matrix products, by query heads/key-value heads, at a head width of 128 in half precision.
"""


def format_page(results: Mapping[str, Any]) -> str:
    """The page. results: the content of the file."""
    launches: Sequence[Launch] = results["launches"]
    models = [name for name in results["models"] if name != WIDEST]
    count = sum(len(launch["needs"]) for launch in launches)
    compiled = _COMPILED.format(
        triton=results["triton"], programs=count, launches=len(launches), num_models=len(models),
        models=", ".join(models), float32_model=FLOAT32_MODEL,
    )  # fmt: skip
    released = [launch for launch in launches if launch["models"] != [WIDEST]]
    cards, kernels, shapes = format_cards(), format_kernels(released), format_shapes(launches)
    parts = [_HEADER, compiled, "## Cards\n", cards, _T4, "## Kernels\n", _KERNELS, kernels]
    parts += ["## Attention by shape\n", _SHAPES, shapes]
    return "\n".join(parts)


def format_cards() -> str:
    def describe(capability: tuple[int, int], card: Card) -> list[object]:
        tiles = find_tiles(capability)
        shape = f"{tiles.block_m}×{tiles.block_n}, {tiles.num_warps} warps"
        limits = card.shared_kib, card.max_spilled, shape
        return [format_capability(capability), card.names, *limits, ", ".join(card.dtypes)]

    header = ["capability", "cards", "shared memory, KiB", "spilled bytes allowed", "attention's tiles", "compiled in"]
    return _format_table(header, [describe(*item) for item in CARDS.items()])


def format_kernels(launches: Sequence[Launch]) -> str:
    """One row for each kernel."""
    by_kernel: dict[str, list[Launch]] = defaultdict(list)
    for launch in launches:
        by_kernel[launch["kernel"]].append(launch)
    rows = [[_name(kernel), *_list_worst(group)] for kernel, group in sorted(by_kernel.items())]
    return _format_table(["kernel", *map(format_capability, CARDS)], rows)


def format_shapes(launches: Sequence[Launch]) -> str:
    """One row for each kernel with matrix products and number of heads."""
    by_shape: dict[tuple[str, int, int], list[Launch]] = defaultdict(list)
    for launch in launches:
        constants = launch["constants"]
        if launch["dtype"] != "fp32" and constants.get("D") == MAX_HEAD_DIM and {"G", "BLOCK_N"} <= constants.keys():
            by_shape[launch["kernel"], constants["G"] * constants["K"], constants["K"]].append(launch)
    rows = [[_name(kernel), f"{H}/{K}", *_list_worst(group)] for (kernel, H, K), group in sorted(by_shape.items())]
    return _format_table(["kernel", "heads", *map(format_capability, CARDS)], rows)


def _list_worst(launches: Sequence[Launch]) -> list[str]:
    """By card: the most shared memory and the most spilled bytes of these launches."""
    cells = []
    for capability in map(format_capability, CARDS):
        needs = [launch["needs"][capability] for launch in launches if capability in launch["needs"]]
        shared, _, spilled, _ = map(max, zip(*needs, strict=True)) if needs else (0, 0, 0, "")
        cells.append(f"{shared / KIB:.0f}{f' +{spilled}' if spilled else ''}" if needs else "–")
    return cells


def _name(kernel: str) -> str:
    """`attention: attention_fwd`."""
    module, _, name = kernel.partition(":")
    return f"{module}: {name.strip('_').removesuffix('_kernel')}"


def _format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


if __name__ == "__main__":
    print(format_page(json.loads(RESULTS.read_text(encoding="utf-8"))), end="")
