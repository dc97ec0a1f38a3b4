"""`plan`: predicts steps, memory and time of a training without reading weights. Needs no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from lorgnette.config import Settings
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.models.registry import find_unsupported_feature
from lorgnette.planning.memory import (
    GIB,
    EngineName,
    MemoryEstimate,
    MemoryFit,
    Workload,
    compute_usable_bytes,
    find_fit,
    predict_memory,
)
from lorgnette.planning.throughput import GPU_TFLOPS, TimeEstimate, estimate_time
from lorgnette.report.console import Terminal
from lorgnette.training.batch_stats import EpochTokens, StepStats, TokenLengths, compare_layouts, count_steps
from lorgnette.training.data_module import TrainingData
from lorgnette.training.initial_adapter import inherit_settings
from lorgnette.training.sampler import BatchSampler

GPU_SIZES_GIB = (8.0, 12.0, 16.0, 24.0, 48.0, 80.0, 141.0)
"""Memory of common GPUs."""
_BAR_WIDTH = 40
_LAYOUT_TEXTS = {
    "packed": "packed, without padding",
    "prefix_shared": "packed with shared prefixes (needs lora.dropout=0)",
    "grouped_by_image": "with all captions of an image together (data.group_by_image=true)",
}
_PHASE_TEXTS = {
    "features": "while encoding images",
    "loss": "when computing the loss",
    "backward": "in the backward pass",
    "eval": "in an eval loss",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The prediction. reason: why the run cannot use the fast engine.

    workload, memory and time are None and fits is empty if they cannot be predicted; `reason` then says why.
    """

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
        """The plan as JSON values; memory in bytes."""
        values = asdict(replace(self, memory=None, fits={}))
        values["memory"] = self.memory and {
            "peak_bytes": self.memory.peak_bytes,
            "peak_phase": self.memory.peak_phase,
            "phases": {name: dict(items) for name, items in self.memory.phases.items()},
        }
        values["fits"] = {f"{gib:g}": fit and asdict(fit) for gib, fit in self.fits.items()}
        return values


def plan(settings: Settings, *, memory: float | None = None, gpu: str = "H200", console: Console | None = None) -> Plan:
    """Predict and print steps, memory and time of a training.

    memory: GiB of the GPU; None: of common GPUs. Raises what `train` raises before it reads weights.
    """
    terminal = Terminal(console)
    settings = inherit_settings(settings, terminal)
    data = TrainingData.load(settings, terminal)
    examples, max_tokens = data.examples, settings.train.max_tokens_per_microbatch
    config = data.checkpoint.load_hf_config()
    engine, reason = select_engine(settings, config, on_gpu=settings.device != "cpu")

    # Steps: counted on the real examples with the training's sampler.
    ungrouped, by_image = (
        BatchSampler(examples, settings.train, settings.seed, group_by_image=grouped) for grouped in (False, True)
    )
    sampler = by_image if settings.data.group_by_image else ungrouped
    steps = count_steps(sampler, max_tokens, prefix_sharing=select_prefix_sharing(settings, engine))
    lengths = TokenLengths.from_lengths([len(encoded.input_ids) for encoded in examples])
    layouts = compare_layouts(ungrouped, by_image, max_tokens)
    counts = len(examples), len(data.held_out), len(data.grids)
    result = Plan(*counts, lengths, layouts, steps, engine, reason, None, None, {}, gpu, None)

    # Memory and time: predicted from shapes, with the workload that `train` uses.
    if not find_unsupported_feature(config) and settings.device != "cpu":
        workload = Workload.from_settings(settings, config, engine, steps.largest_microbatch, data.held_out, data.grids)
        longest = max(len(encoded.input_ids) for encoded in [*examples, *data.held_out])
        sizes = GPU_SIZES_GIB if memory is None else (float(memory),)
        fits = {gib: find_fit(workload, longest, compute_usable_bytes(gib)) for gib in sizes}
        time = estimate_time(workload, gpu, steps.tokens, steps.labels, steps.num_microbatches, data.grids)
        result = replace(result, workload=workload, memory=predict_memory(workload), fits=fits, time=time)
    for line in _format_plan(result, settings):
        terminal.print_result(line)
    return result


def _format_plan(plan: Plan, settings: Settings) -> Iterator[str]:
    tokens, layouts, steps, memory = plan.tokens, plan.layouts, plan.steps, plan.memory
    yield f"examples   {plan.examples} for training, {plan.held_out} held out; {plan.images} distinct images"
    yield f"tokens     {tokens.min} to {tokens.max} per example; median {tokens.median}, 95 % have at most {tokens.p95}"
    longest_bar = max(count for _, _, count in tokens.histogram)
    for first, last, count in tokens.histogram:
        span = f"{first}–{last}" if last > first else str(first)
        yield f"{span:>16} {'█' * round(count / longest_bar * _BAR_WIDTH)} {count}"
    per_step = steps.num_microbatches / steps.total_steps
    microbatches = f"{per_step:.3g} micro-batches per step, of at most {steps.largest_microbatch[0]} tokens"
    yield f"steps      {steps.total_steps}, {steps.steps_per_epoch} per epoch; {microbatches}"
    yield f"batches    {layouts.padded} tokens per epoch in padded batches of {settings.train.batch_size}"
    for name, text in _LAYOUT_TEXTS.items():
        count = getattr(layouts, name)
        yield f"           {count} {text}: {1 - count / layouts.padded:.0%} fewer"
    yield f"engine     {plan.engine}{f': {plan.reason}' if plan.reason else ' on a GPU, reference on a CPU'}"
    if memory is None or plan.time is None or plan.workload is None:
        yield f"memory     memory and time are not predicted: {plan.reason}"
        return
    yield f"memory     {memory.peak_bytes / GIB:.1f} GiB, {_PHASE_TEXTS[memory.peak_phase]} (in GiB):"
    yield "           " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory.peak_items.items() if size)
    for gib, fit in plan.fits.items():
        if fit is None:
            yield f"           does not fit on {gib:g} GiB"
        elif reductions := _describe_reductions(fit, plan.workload):
            yield f"           fits on {gib:g} GiB with {' and '.join(reductions)}: {fit.peak_bytes / GIB:.1f} GiB"
        else:
            yield f"           fits on {gib:g} GiB{' or more' if gib < max(plan.fits) else ''}"
            break
    time = plan.time
    steps_time, features_time = _format_duration(time.steps_s), _format_duration(time.features_s)
    yield f"time       {steps_time} for steps, {features_time} for image features on one {plan.gpu},"
    rates = f"{time.steps_tflops:.0f} and {time.tower_tflops:.0f}"
    yield f"           assuming {rates} of its {GPU_TFLOPS[plan.gpu]} TFLOP/s"


def _describe_reductions(fit: MemoryFit, workload: Workload) -> list[str]:
    """What `train` reduces to fit; it does so without being asked."""
    tokens, layers = f"train.max_tokens_per_microbatch={fit.max_tokens}", workload.text.num_layers
    reductions = [tokens] if fit.max_tokens < workload.max_tokens else []
    return reductions + ([f"{fit.recompute_layers} of {layers} layers recomputed"] if fit.recompute_layers else [])


def _format_duration(seconds: float) -> str:
    if seconds < 120:
        return "less than 0.1 s" if seconds < 0.1 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
