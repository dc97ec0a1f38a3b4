"""`plan`: what a training will compute, need and take, before a weight is read. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from lorgnette.commands.batch_stats import Rows, Steps, Tokens, held_out_of, rows_of, steps_of
from lorgnette.config import Settings
from lorgnette.engine.select import engine_for, share_of
from lorgnette.models.qwen2_vl.config import TextShape, VisionShape, config_of, unsupported
from lorgnette.planning.memory import GIB, EngineName, Fit, Memory, Work, fit, padded, predicted, usable
from lorgnette.planning.throughput import GPUS, Time, expected
from lorgnette.processing.prefix_tree import Share
from lorgnette.report.console import Terminal
from lorgnette.training.data_module import Material

SIZES = (8.0, 12.0, 16.0, 24.0, 48.0, 80.0, 141.0)
"""GiB of the GPUs that there are."""
_BAR = 40


@dataclass(frozen=True, slots=True)
class Plan:
    """What `plan` found. why: what keeps the fast engine from this run. work, memory and time are None, and fits is
    empty, where they cannot be predicted: `why` says it."""

    examples: int
    held_out: int
    pictures: int
    tokens: Tokens
    rows: Rows
    steps: Steps
    engine: EngineName
    why: str | None
    work: Work | None
    memory: Memory | None
    fits: Mapping[float, Fit | None]
    gpu: str
    time: Time | None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; memory in bytes."""
        made = asdict(replace(self, memory=None, fits={}))
        made["steps"].pop("sizes")
        made["memory"] = self.memory and {
            "peak": self.memory.peak,
            "fullest": self.memory.fullest,
            "moments": {name: dict(items) for name, items in self.memory.moments.items()},
        }
        made["fits"] = {f"{gib:g}": found and asdict(found) for gib, found in self.fits.items()}
        return made


def plan(settings: Settings, *, memory: float | None = None, gpu: str = "H200", console: Console | None = None) -> Plan:
    """Look a training over as `train` does, and say what it will compute, need and take.

    memory: GiB of the GPU; None: the sizes there are. Raises what `train` raises before it reads weights.
    """
    terminal = Terminal(console)
    made = _planned(settings, Material.of(settings, terminal), memory, gpu)
    for line in _lines(made, settings):
        terminal.say(line)
    return made


def _planned(settings: Settings, material: Material, memory: float | None, gpu: str) -> Plan:
    train, examples = settings.train, material.examples
    config = config_of(material.checkpoint)
    engine, why = engine_for(settings, config, on_gpu=settings.device != "cpu")
    share = share_of(settings, engine)
    grouped = settings.data.group_captions == "image"
    steps = steps_of(examples, train, settings.seed, share, grouped=grouped)
    made = Plan(
        len(examples), len(material.held_out), len(material.grids), Tokens.of([len(e.tokens) for e in examples]),
        rows_of(examples, train, settings.seed), steps, engine, why, None, None, {}, gpu, None,
    )  # fmt: skip
    if unsupported(config) or settings.device == "cpu":
        return made
    work = _work(settings, material, made)
    longest = max(len(encoded.tokens) for encoded in [*examples, *material.held_out])
    sizes = SIZES if memory is None else (float(memory),)
    return replace(
        made,
        work=work,
        memory=predicted(work),
        fits={gib: fit(work, longest, usable(gib)) for gib in sizes},
        time=expected(
            work, gpu, rows=steps.rows, labels=steps.labels, passes=steps.passes, grids=material.grids
        ),
    )  # fmt: skip


def _work(settings: Settings, material: Material, made: Plan) -> Work:
    config = config_of(material.checkpoint)
    in_evaluation: Share = "tree" if made.engine == "fast" else "none"
    held_out = held_out_of(material.held_out, settings.train.pass_tokens, in_evaluation)
    open_tower = "vision" in settings.lora.towers
    # A pass whose every row were a picture's is the most that an open tower can meet.
    merge = VisionShape.of(config).merge
    return Work(
        made.engine, TextShape.of(config), VisionShape.of(config), settings.lora.targets, settings.lora.rank,
        dropout=settings.lora.dropout > 0, rows=made.steps.largest[0], labels=made.steps.largest[1],
        number_bytes=4 if settings.dtype == "float32" else 2,
        tower="while features are made", held_out_rows=held_out[0], held_out_labels=held_out[1],
        rooms=len({padded(rows) for rows in made.steps.sizes}),
        feature_rows=sum(grid.tokens for grid in material.grids),
        open_patches=made.steps.largest[0] * merge**2 if open_tower else 0,
    )  # fmt: skip


def _lines(made: Plan, settings: Settings) -> Iterator[str]:
    tokens, rows, steps = made.tokens, made.rows, made.steps
    yield f"examples   {made.examples} trained on, {made.held_out} held out; {made.pictures} distinct pictures"
    yield f"tokens     {tokens.least} to {tokens.most} an example; half up to {tokens.median}, 95 % up to {tokens.p95}"
    most = max(count for _, _, count in tokens.bars)
    for first, last, count in tokens.bars:
        span = f"{first}–{last}" if last > first else str(first)
        yield f"{span:>16} {'█' * round(count / most * _BAR)} {count}"
    each, largest = steps.passes / steps.total, steps.largest[0]
    yield f"steps      {steps.total}, {steps.in_epoch} an epoch; passes a step {each:.3g}, at most {largest} rows"
    yield f"rows       {rows.padded} an epoch in padded batches of {settings.train.batch_size}"
    for name, count in (("packed", rows.packed), ("shared", rows.shared), ("grouped", rows.grouped)):
        yield f"           {count} {_LAID_OUT[name]}: {1 - count / rows.padded:.0%} fewer"
    yield f"engine     {made.engine}{f': {made.why}' if made.why else ', on a GPU; reference on a CPU'}"
    if made.memory is None or made.time is None or made.work is None:
        yield f"memory     not predicted, nor is time: {made.why}"
        return
    yield f"memory     {made.memory.peak / GIB:.1f} GiB at the fullest moment, {_MOMENTS[made.memory.fullest]}:"
    yield "           " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in made.memory.items.items() if size)
    for gib, found in made.fits.items():
        lowered = _lowered(found, made.work)
        if found and not lowered:
            yield f"{gib:>6g} GiB {'or more ' if gib < max(made.fits) else ''}fit it as it is"
            break
        with_it = f"with {' and '.join(lowered)}: {found.peak / GIB:.1f} GiB" if found else "do not fit it"
        yield f"{gib:>6g} GiB {with_it}"
    yield (
        f"time       {_duration(made.time.steps_s)} of steps, {_duration(made.time.features_s)} of features on one "
        f"{made.gpu}, assuming {made.time.steps_tflops:.0f} and {made.time.tower_tflops:.0f} of its "
        f"{GPUS[made.gpu]} TFLOP/s"
    )


_LAID_OUT = {
    "packed": "packed",
    "shared": "with what is shared in a pass once (where lora.dropout=0)",
    "grouped": "with a picture's captions together too (data.group_captions=image)",
}
_MOMENTS = {
    "features": "while features are made",
    "loss": "when the loss is taken",
    "backward": "on the way back",
    "held-out": "in an eval loss",
}


def _lowered(found: Fit | None, work: Work) -> list[str]:
    """What is lowered to fit, as a person sets it; layers are run twice without being asked."""
    lowered = []
    if found and found.rows < max(work.rows, work.held_out_rows):
        lowered.append(f"train.pass_tokens={found.rows}")
    if found and found.again:
        lowered.append(f"{found.again} of {work.text.layers} layers run twice")
    return lowered


def _duration(seconds: float) -> str:
    if seconds < 120:
        return "less than 0.1 s" if seconds < 0.1 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
