"""`plan`: predicts steps, memory and time of a training without reading weights. Needs no torch."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lorgnette.commands.arguments import SettingsLike, build_settings
from lorgnette.commands.model import find_entry
from lorgnette.config import Settings
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.models.registry import has_known_sizes
from lorgnette.planning.card_fit import Variant, compute_least_bytes, find_variant, list_variants
from lorgnette.planning.data_parallel import ParallelEstimate, estimate_parallel, format_duration
from lorgnette.planning.gpus import GPU_NAMES, GPUS, Gpu, GpuName, count_gpus, find_gpu
from lorgnette.planning.memory import (
    GIB,
    EngineName,
    MemoryEstimate,
    MemoryFit,
    Workload,
    compute_free_bytes,
    compute_usable_bytes,
    predict_memory,
)
from lorgnette.planning.throughput import (
    ENGINE_SPEEDS,
    TimeEstimate,
    count_step_flops,
    count_tower_flops,
    estimate_time,
    measure_matmul_gflops,
)
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import read_memory_gib
from lorgnette.report.notebook import build_frame, render_result
from lorgnette.resolve import parse_model_name
from lorgnette.training.batch_stats import EpochTokens, StepStats, TokenLengths, compare_layouts, count_steps
from lorgnette.training.data_module import TrainingData
from lorgnette.training.initial_adapter import inherit_settings
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.start_warnings import explain_idle_gpus, explain_missing_device, explain_slow_dtype
from lorgnette.training.step_count import StepCount

if TYPE_CHECKING:
    import pandas

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
    "recompute": "while a layer is computed again",
    "warm-up": "while kernels are loaded",
    "eval": "in an eval loss",
}


@dataclass(frozen=True, slots=True)
class GpuEstimate:
    """Whether the run fits on a GPU, with which reductions, and how long it takes if that can be said.

    settings: what has to be set for that, empty if nothing. note: what differs there. parallel: what several such GPUs
    gain; `time` is then theirs.
    """

    gpu: Gpu
    fit: MemoryFit | None = None
    time: TimeEstimate | None = None
    settings: tuple[str, ...] = ()
    note: str = ""
    parallel: ParallelEstimate | None = None


@dataclass(frozen=True, slots=True)
class CpuEstimate:
    """This machine without a GPU. used_gib: weights and adapter in fp32; seconds: at matmul_gflops, the speed of a
    matrix product now, which no training reaches; None if they cannot be predicted."""

    cores: int
    memory_gib: float | None
    used_gib: float | None = None
    matmul_gflops: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The prediction. reason: why the run cannot use the fast engine. machine: this one; cards: GPUs that people own.

    workload and memory are None and cards is empty if they cannot be predicted; `reason` then says why. num_gpus: of
    each card, and of this machine's; workload: of one of them.
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
    machine: GpuEstimate | CpuEstimate
    cards: Sequence[GpuEstimate]
    num_gpus: int = 1

    def to_rows(self) -> list[dict[str, Any]]:
        """A dict for each kind of GPU, this machine's first: whether the training fits, and its seconds in all."""
        own = [self.machine] if isinstance(self.machine, GpuEstimate) else []
        return [
            {
                "gpu": estimate.gpu.name,
                "memory_gib": estimate.gpu.memory_gib,
                "fits": _describe_fit(estimate, self.workload) if self.workload else None,
                "seconds": estimate.time and estimate.time.steps_s + estimate.time.features_s,
            }
            for estimate in (*own, *self.cards)
        ]

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame with a row for each GPU. Raises LorgnetteError if pandas is not installed."""
        return build_frame(self.to_rows())

    def _repr_html_(self) -> str:
        examples = f"{self.examples} examples, {self.held_out} held out"
        facts = f"{examples}; {self.steps.total_steps} steps; engine {self.engine}"
        return render_result(lines=[facts, *([self.reason] if self.reason else [])], rows=self.to_rows())

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values; memory in bytes."""
        values = asdict(replace(self, memory=None))
        values["memory"] = self.memory and {
            "peak_bytes": self.memory.peak_bytes,
            "peak_phase": self.memory.peak_phase,
            "phases": {name: dict(items) for name, items in self.memory.phases.items()},
        }
        return values


def plan(
    data: Path | str | Settings | None = None,
    *,
    recipe: str | Path | None = None,
    settings: SettingsLike = None,
    memory: float | None = None,
    gpu: str | None = None,
    gpus: int | str | None = None,
    console: Console | None = None,
    **values: Any,
) -> Plan:
    """Predict and print steps, memory and time of a training: on this machine, then on GPUs that people own.

    data, recipe, settings, values: as in `train`. gpu: this one instead of all, in any letter case. memory: GiB of a
    GPU instead of its own. gpus: how many of each train together, or "all" of this machine; it may have fewer. Raises
    what `train` raises before it reads weights.
    """
    card = next((name for name in GPU_NAMES if gpu and name.lower() == gpu.lower()), None)
    if gpu is not None and card is None:
        hint = f"give one of {', '.join(GPUS)}, or its memory in GiB: --memory 16 (in Python: memory=16)"
        raise UsageError("no such GPU", where=f"gpu={gpu}", hint=hint)
    terminal = Terminal(console)
    settings = build_settings(data, recipe=recipe, settings=settings, values=values, terminal=terminal)
    num_gpus = count_gpus(gpus)
    settings = inherit_settings(settings, terminal)
    with _explain_missing_model(settings):
        training_data = TrainingData.load(settings, terminal, needs_weights=False)
    return _plan(settings, training_data, memory, card, num_gpus, terminal)


@contextmanager
def _explain_missing_model(settings: Settings) -> Iterator[None]:
    """Say what is known of a model whose small files no hub gives now."""
    name, _ = parse_model_name(settings.model)
    try:
        yield
    except LorgnetteError as error:
        if error.where != name or not (entry := find_entry(name)):
            raise
        size = f"{entry.memory_bytes / GIB:.1f} GiB of GPU memory"
        if settings.quantization is not None:
            size += " in bfloat16 (docs/guides/cards.md has NF4's)"
        known = f"{size} for a typical run, engine {entry.engine}"
        hint = f"without the model's files only this is known: {known} (`lorgnette model list`); {error.hint}"
        raise type(error)(error.message, where=error.where, hint=hint) from None


def _plan(
    settings: Settings,
    data: TrainingData,
    memory: float | None,
    gpu: GpuName | None,
    num_gpus: int,
    terminal: Terminal,
) -> Plan:
    examples, max_tokens = data.examples, settings.train.max_tokens_per_microbatch
    config = data.checkpoint.load_hf_config()
    on_gpu = settings.device in ("auto", "cuda")
    engine, reason = select_engine(settings, config, on_gpu=on_gpu)

    # Steps: counted on the real examples with the training's sampler.
    ungrouped, by_image = (
        BatchSampler(examples, settings.train, settings.seed, group_by_image=grouped) for grouped in (False, True)
    )
    sampler = by_image if settings.data.group_by_image else ungrouped
    prefix_sharing = select_prefix_sharing(settings, engine)
    steps = count_steps(sampler, max_tokens, prefix_sharing=prefix_sharing, num_ranks=num_gpus)
    lengths = TokenLengths.from_lengths(examples.sizes.lengths)
    layouts = compare_layouts(ungrouped, by_image, max_tokens)
    counts = len(examples), len(data.held_out), len(data.grids)
    own_gpu = find_gpu() if on_gpu else None
    if own_gpu is None and (warning := explain_slow_dtype(settings.dtype)):
        terminal.warn(f"without a GPU: {warning}")
    if warning := explain_missing_device(settings.device):
        terminal.warn(warning)
    machine = GpuEstimate(own_gpu) if own_gpu else _describe_cpu()
    result = Plan(*counts, lengths, layouts, steps, engine, reason, None, None, machine, (), num_gpus)

    # Memory and time: predicted from shapes, with the workload that `train` uses.
    if has_known_sizes(config):
        workload = Workload.from_settings(
            settings, config, engine, steps.largest_microbatch, data.held_out, data.grids, num_gpus
        )
        token_side = data.processor.image_processor.token_side
        tokens_of = [
            (length, [grid.num_tokens for grid in grids])
            for sizes in (examples.sizes, data.held_out.sizes)
            for length, grids in zip(sizes.lengths.tolist(), sizes.iter_grids(), strict=True)
        ]
        variants = list_variants(settings, config, workload, tokens_of, token_side, num_gpus)
        workload = variants[0].workload  # with the layers sharded, if the settings say so

        def estimate(card: Gpu, available_bytes: int) -> GpuEstimate:
            return _estimate_gpu(card, settings.dtype, variants, available_bytes, steps, data, num_gpus)

        if own_gpu:
            free = compute_free_bytes(int(own_gpu.memory_gib * GIB), has_context=False, num_gpus=num_gpus)
            machine = estimate(own_gpu, free)
        else:
            machine = _estimate_cpu(workload, steps, data)
        result = replace(result, machine=machine)
        if on_gpu:
            chosen = _select_cards(gpu, memory)
            cards = [estimate(card, compute_usable_bytes(card.memory_gib, num_gpus)) for card in chosen]
            result = replace(result, workload=workload, memory=predict_memory(workload), cards=cards)
    for line in _format_plan(result, settings):
        terminal.print_result(line)
    if hint := explain_idle_gpus(settings.device, num_gpus):
        terminal.print(f"note       {hint}")
    return result


def _select_cards(name: GpuName | None, memory: float | None) -> list[Gpu]:
    """The GPUs to predict for: one by name or by its memory, else all."""
    if name is None and memory is None:
        return list(GPUS.values())
    gpu = GPUS[name] if name else Gpu("a GPU", 0.0, None)
    return [replace(gpu, memory_gib=float(memory or gpu.memory_gib))]


def _estimate_gpu(
    gpu: Gpu,
    dtype: str,
    variants: Sequence[Variant],
    available_bytes: int,
    steps: StepStats,
    data: TrainingData,
    num_gpus: int,
) -> GpuEstimate:
    """dtype: of the settings. steps: dealt to num_gpus."""
    note = ""
    if gpu.obstacle or (dtype == "bfloat16" and not gpu.has_bfloat16):
        return GpuEstimate(gpu, note=gpu.obstacle or "not with dtype=bfloat16, which it lacks")
    if dtype == "auto" and not gpu.has_bfloat16:
        note = "in float16"
        variants = [replace(variant, workload=replace(variant.workload, is_float16=True)) for variant in variants]
    found = find_variant(variants, available_bytes)
    if found is None:
        least = compute_least_bytes(variants[-1]) / GIB
        return GpuEstimate(gpu, note=f"does not fit: it takes at least {least:.1f} GiB")
    variant, fit = found
    estimate = GpuEstimate(gpu, fit, settings=variant.words, note=note)
    if gpu.tflops is None:
        return estimate
    num_microbatches = -(-max(steps.num_microbatches, math.ceil(steps.tokens / fit.max_tokens)) // num_gpus)
    reduced = replace(variant.workload, recompute_layers=fit.recompute_layers)
    time = estimate_time(reduced, gpu.tflops, steps.tokens, steps.labels, num_microbatches, data.grids)
    if num_gpus == 1:
        return replace(estimate, time=time)
    parallel = estimate_parallel(reduced, gpu, steps.tokens_per_step, num_gpus)
    time = replace(time, steps_s=time.steps_s / parallel.speedup, features_s=time.features_s / num_gpus)
    return replace(estimate, time=time, parallel=parallel)


def _describe_cpu() -> CpuEstimate:
    return CpuEstimate(os.cpu_count() or 1, read_memory_gib())


def _estimate_cpu(workload: Workload, steps: StepStats, data: TrainingData) -> CpuEstimate:
    items = predict_memory(replace(workload, engine="reference", bytes_per_value=4)).phases["backward"]
    flops = count_step_flops(workload, steps.tokens, steps.labels)
    flops += sum(count_tower_flops(workload.vision, grid) for grid in data.grids)
    used_gib = sum(items[name] for name in ("weights", "vision tower", "adapter")) / GIB
    gflops = measure_matmul_gflops()
    return replace(_describe_cpu(), used_gib=used_gib, matmul_gflops=gflops, seconds=flops / (gflops * 1e9))


def _format_plan(plan: Plan, settings: Settings) -> Iterator[str]:
    tokens, layouts, steps, memory = plan.tokens, plan.layouts, plan.steps, plan.memory
    yield f"examples   {plan.examples} for training, {plan.held_out} held out; {plan.images} distinct images"
    yield f"tokens     {tokens.min} to {tokens.max} per example; median {tokens.median}, 95 % have at most {tokens.p95}"
    longest_bar = max(count for _, _, count in tokens.histogram)
    for first, last, count in tokens.histogram:
        span = f"{first}–{last}" if last > first else str(first)
        yield f"{span:>16} {'█' * round(count / longest_bar * _BAR_WIDTH)} {count}"
    per_step = steps.num_microbatches / steps.total_steps
    unit = "micro-batch" if f"{per_step:.3g}" == "1" else "micro-batches"
    microbatches = f"{per_step:.3g} {unit} per step, of at most {steps.largest_microbatch[0]} tokens"
    step_count = StepCount(plan.examples, settings.train)
    yield f"steps      {step_count.describe()}; {steps.steps_per_epoch} per epoch, {microbatches}"
    if step_count.warning:
        yield f"           {step_count.warning}"
    yield f"batches    {layouts.padded} tokens per epoch in padded batches of {settings.train.batch_size}"
    for name, text in _LAYOUT_TEXTS.items():
        count = getattr(layouts, name)
        yield f"           {count} {text}: {1 - count / layouts.padded:.0%} fewer"
    yield f"engine     {plan.engine}{f': {plan.reason}' if plan.reason else ' on a GPU, reference on a CPU'}"
    yield f"machine    {_describe_machine(plan)}"
    if memory is None or plan.workload is None:
        yield f"memory     memory and time on a GPU are not predicted: {plan.reason}"
        return
    yield f"memory     {memory.peak_bytes / GIB:.1f} GiB, {_PHASE_TEXTS[memory.peak_phase]} (in GiB):"
    yield "           " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory.peak_items.items() if size)
    title = f"{plan.num_gpus} GPUs" if plan.num_gpus > 1 else "GPUs"
    yield f"{title:<10} {'':<17} {'GiB':>5}  {'steps':>13}  {'images':>13}  fits"
    for card in plan.cards:
        times = (
            [format_duration(value) for value in (card.time.steps_s, card.time.features_s)] if card.time else ["", ""]
        )
        cells = f"{card.gpu.name:<17} {card.gpu.memory_gib:>5.4g}  {times[0]:>13}  {times[1]:>13}"
        yield f"           {cells}  {_describe_fit(card, plan.workload)}"
    yield from _describe_gain(plan, settings)
    speed = ENGINE_SPEEDS[plan.workload.engine]
    shares = f"{speed.step_fraction:.0%} of a GPU's published peak in steps, {speed.tower_fraction:.0%} for images"
    at_most = f"are for all {steps.total_steps} steps and " if settings.train.epochs == "auto" else ""
    uses_nf4 = plan.workload.nf4_values or any("quantization=nf4" in card.settings for card in plan.cards)
    left_out = ", without the time of NF4" if uses_nf4 else ""
    if any(card.fit and card.fit.num_shards > 1 for card in plan.cards):
        left_out += ", and without that of gathering layers"
    yield f"           times {at_most}assume {shares}{left_out};"
    yield "           tested on H100 and H200 only; 1 GiB of a GPU is left for driver and desktop;"
    yield "           a Mac trains on its CPU; device=mps, its GPU in the reference engine, is not tested"


def _describe_gain(plan: Plan, settings: Settings) -> Iterator[str]:
    """What several GPUs gain: this machine's if they are known, else the last of the list."""
    machine = [plan.machine] if isinstance(plan.machine, GpuEstimate) else []
    for estimate in (*machine, *reversed(plan.cards)):
        if (parallel := estimate.parallel) and estimate.time:
            alone = estimate.time.steps_s * parallel.speedup
            first, *rest = parallel.describe(alone, settings.train.batch_size)
            yield f"gain       {estimate.gpu.name.partition(',')[0]}: {first}"
            yield from (f"           {line}" for line in rest)
            return


def _describe_machine(plan: Plan) -> str:
    machine = plan.machine
    if isinstance(machine, CpuEstimate):
        memory = f", {machine.memory_gib:g} GiB" if machine.memory_gib else ""
        name = f"{machine.cores} CPU {'core' if machine.cores == 1 else 'cores'}{memory}"
        if machine.used_gib is None or machine.seconds is None:
            return name
        used = f"{name}, no GPU: weights and adapter take {machine.used_gib:.2f} GiB"
        if machine.memory_gib and machine.used_gib > machine.memory_gib:
            return f"{used}: the training does not fit this machine"
        seconds = format_duration(machine.seconds)
        return f"{used}; the training takes several times longer than {seconds}, its matrix products' time alone"
    free = f"{machine.gpu.name}, {machine.gpu.memory_gib:.1f} GiB free"
    if plan.num_gpus > 1:
        free = f"{plan.num_gpus} × {free} on the first"
    if plan.workload is None:
        return free
    fit = _describe_fit(machine, plan.workload)
    if machine.time is None:
        return f"{free}: {fit}"
    times = [format_duration(seconds) for seconds in (machine.time.steps_s, machine.time.features_s)]
    return f"{free}: {fit}; {times[0]} for steps, {times[1]} for image features"


def _describe_fit(estimate: GpuEstimate, workload: Workload) -> str:
    if estimate.fit is None:
        return estimate.note
    note = f", {estimate.note}" if estimate.note else ""
    needs = f"needs {' '.join(estimate.settings)}" if estimate.settings else ""
    reductions = _describe_reductions(estimate.fit, workload)
    fits = f"fits with {' and '.join(reductions)}" if reductions else "fits" if not needs else ""
    text = "; ".join(filter(None, (needs, fits)))
    return f"{text}: {estimate.fit.peak_bytes / GIB:.1f} GiB{note}" if needs or reductions else f"{text}{note}"


def _describe_reductions(fit: MemoryFit, workload: Workload) -> list[str]:
    """What `train` reduces to fit; it does so without being asked."""
    layers = workload.text.num_layers
    reductions = [f"the layers sharded over {fit.num_shards} GPUs"] if fit.num_shards > 1 else []
    if fit.max_tokens < workload.max_tokens:
        reductions.append(f"train.max_tokens_per_microbatch={fit.max_tokens}")
    if fit.recompute_layers:
        reductions.append(f"{fit.recompute_layers} of {layers} layers recomputed")
    return reductions
