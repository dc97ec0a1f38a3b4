"""`plan`: what a training will compute, need and take, before a weight is read. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from lorgnette.commands.batch_stats import (
    EpochTokens,
    StepStats,
    TokenLengths,
    compare_layouts,
    count_steps,
    find_largest_eval_microbatch,
)
from lorgnette.config import Settings
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig, find_unsupported_feature, load_hf_config
from lorgnette.planning.memory import (
    GIB,
    EngineName,
    MemoryEstimate,
    MemoryFit,
    Workload,
    compute_usable_bytes,
    find_fit,
    pad_tokens,
    predict_memory,
)
from lorgnette.planning.throughput import GPU_TFLOPS, TimeEstimate, estimate_time
from lorgnette.processing.prefix_tree import Share
from lorgnette.report.console import Terminal
from lorgnette.training.data_module import TrainingData

GPU_SIZES_GIB = (8.0, 12.0, 16.0, 24.0, 48.0, 80.0, 141.0)
"""GiB of the GPUs that there are."""
_BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class Plan:
    """What `plan` found. why: what keeps the fast engine from this run. work, memory and time are None, and fits is
    empty, where they cannot be predicted: `why` says it."""

    examples: int
    held_out: int
    images: int
    tokens: TokenLengths
    layouts: EpochTokens
    steps: StepStats
    engine: EngineName
    reason: str | None
    workload: Workload | None
    memory: MemoryEstimate | None
    fits: Mapping[float, MemoryFit | None]
    gpu: str
    time: TimeEstimate | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; memory in bytes."""
        made = asdict(replace(self, memory=None, fits={}))
        made["steps"].pop("sizes")
        made["memory"] = self.memory and {
            "peak": self.memory.peak_bytes,
            "fullest": self.memory.peak_phase,
            "moments": {name: dict(items) for name, items in self.memory.phases.items()},
        }
        made["fits"] = {f"{gib:g}": found and asdict(found) for gib, found in self.fits.items()}
        return made


def plan(settings: Settings, *, memory: float | None = None, gpu: str = "H200", console: Console | None = None) -> Plan:
    """Look a training over as `train` does, and say what it will compute, need and take.

    memory: GiB of the GPU; None: the sizes there are. Raises what `train` raises before it reads weights.
    """
    terminal = Terminal(console)
    made = _build_plan(settings, TrainingData.load(settings, terminal), memory, gpu)
    for line in _format_plan(made, settings):
        terminal.print(line)
    return made


def _build_plan(settings: Settings, material: TrainingData, memory: float | None, gpu: str) -> Plan:
    train, examples = settings.train, material.examples
    config = load_hf_config(material.checkpoint)
    engine, why = select_engine(settings, config, on_gpu=settings.device != "cpu")
    share = select_prefix_sharing(settings, engine)
    grouped = settings.data.group_by_image
    steps = count_steps(examples, train, settings.seed, share, group_by_image=grouped)
    made = Plan(
        len(examples), len(material.held_out), len(material.grids), TokenLengths.from_lengths([len(e.input_ids) for e in examples]),
        compare_layouts(examples, train, settings.seed), steps, engine, why, None, None, {}, gpu, None,
    )  # fmt: skip
    if find_unsupported_feature(config) or settings.device == "cpu":
        return made
    work = _build_workload(settings, material, made)
    longest = max(len(encoded.input_ids) for encoded in [*examples, *material.held_out])
    sizes = GPU_SIZES_GIB if memory is None else (float(memory),)
    return replace(
        made,
        workload=work,
        memory=predict_memory(work),
        fits={gib: find_fit(work, longest, compute_usable_bytes(gib)) for gib in sizes},
        time=estimate_time(
            work, gpu, tokens=steps.tokens, labels=steps.labels, num_microbatches=steps.num_microbatches, grids=material.grids
        ),
    )  # fmt: skip


def _build_workload(settings: Settings, material: TrainingData, made: Plan) -> Workload:
    config = load_hf_config(material.checkpoint)
    in_evaluation: Share = "tree" if made.engine == "fast" else "none"
    held_out = find_largest_eval_microbatch(material.held_out, settings.train.max_tokens_per_microbatch, in_evaluation)
    open_tower = "vision" in settings.lora.parts
    # A pass whose every row were a picture's is the most that an open tower can meet.
    merge = VisionConfig.from_hf_config(config).merge_size
    return Workload(
        made.engine, TextConfig.from_hf_config(config), VisionConfig.from_hf_config(config), settings.lora.target_modules, settings.lora.rank,
        has_dropout=settings.lora.dropout > 0, tokens=made.steps.largest_microbatch[0], labels=made.steps.largest_microbatch[1],
        bytes_per_value=4 if settings.dtype == "float32" else 2,
        tower_residency="while features are made", eval_tokens=held_out[0], eval_labels=held_out[1],
        num_graphs=len({pad_tokens(rows) for rows in made.steps.microbatch_tokens}),
        feature_tokens=sum(grid.num_tokens for grid in material.grids),
        trained_patches=made.steps.largest_microbatch[0] * merge**2 if open_tower else 0,
    )  # fmt: skip


def _format_plan(made: Plan, settings: Settings) -> Iterator[str]:
    tokens, rows, steps = made.tokens, made.layouts, made.steps
    yield f"examples   {made.examples} trained on, {made.held_out} held out; {made.images} distinct pictures"
    yield f"tokens     {tokens.min} to {tokens.max} an example; half up to {tokens.median}, 95 % up to {tokens.p95}"
    most = max(count for _, _, count in tokens.histogram)
    for first, last, count in tokens.histogram:
        span = f"{first}–{last}" if last > first else str(first)
        yield f"{span:>16} {'█' * round(count / most * _BAR_WIDTH)} {count}"
    each, largest = steps.num_microbatches / steps.total_steps, steps.largest_microbatch[0]
    yield f"steps      {steps.total_steps}, {steps.steps_per_epoch} an epoch; passes a step {each:.3g}, at most {largest} rows"
    yield f"rows       {rows.padded} an epoch in padded batches of {settings.train.batch_size}"
    for name, count in (("packed", rows.packed), ("shared", rows.prefix_shared), ("grouped", rows.grouped_by_image)):
        yield f"           {count} {_LAYOUT_TEXTS[name]}: {1 - count / rows.padded:.0%} fewer"
    yield f"engine     {made.engine}{f': {made.reason}' if made.reason else ', on a GPU; reference on a CPU'}"
    if made.memory is None or made.time is None or made.workload is None:
        yield f"memory     not predicted, nor is time: {made.reason}"
        return
    yield f"memory     {made.memory.peak_bytes / GIB:.1f} GiB at the fullest moment, {_PHASE_TEXTS[made.memory.peak_phase]}:"
    yield "           " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in made.memory.peak_items.items() if size)
    for gib, found in made.fits.items():
        lowered = _describe_reductions(found, made.workload)
        if found and not lowered:
            yield f"{gib:>6g} GiB {'or more ' if gib < max(made.fits) else ''}fit it as it is"
            break
        with_it = f"with {' and '.join(lowered)}: {found.peak_bytes / GIB:.1f} GiB" if found else "do not fit it"
        yield f"{gib:>6g} GiB {with_it}"
    yield (
        f"time       {_format_duration(made.time.steps_s)} of steps, {_format_duration(made.time.features_s)} of features on one "
        f"{made.gpu}, assuming {made.time.steps_tflops:.0f} and {made.time.tower_tflops:.0f} of its "
        f"{GPU_TFLOPS[made.gpu]} TFLOP/s"
    )


_LAYOUT_TEXTS = {
    "packed": "packed",
    "shared": "with what is shared in a pass once (where lora.dropout=0)",
    "grouped": "with a picture's captions together too (data.group_by_image=true)",
}
_PHASE_TEXTS = {
    "features": "while features are made",
    "loss": "when the loss is taken",
    "backward": "on the way back",
    "held-out": "in an eval loss",
}


def _describe_reductions(found: MemoryFit | None, work: Workload) -> list[str]:
    """What is lowered to fit, as a person sets it; layers are run twice without being asked."""
    lowered = []
    if found and found.max_tokens < max(work.tokens, work.eval_tokens):
        lowered.append(f"train.max_tokens_per_microbatch={found.max_tokens}")
    if found and found.recompute_layers:
        lowered.append(f"{found.recompute_layers} of {work.text.num_layers} layers run twice")
    return lowered


def _format_duration(seconds: float) -> str:
    if seconds < 120:
        return "less than 0.1 s" if seconds < 0.1 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
