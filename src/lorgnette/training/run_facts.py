"""What a reader of a run's report asks: what was compared with what, the facts of the run, and what to do next."""

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lorgnette.config import Settings
from lorgnette.data.splits import map_copies
from lorgnette.io.shell import format_command
from lorgnette.models.registry import find_unsupported_feature
from lorgnette.processing.processor import describe_image_size
from lorgnette.report.html.page import Facts
from lorgnette.report.manifest import format_date
from lorgnette.report.run_dir import RunDir
from lorgnette.report.run_log import CURVES, Record, parse_number, select_series
from lorgnette.resolve import find_model_config
from lorgnette.training.data_module import TrainingData
from lorgnette.types import BASE_MODEL, PredictionRow

PARTS_OF_STAGES = ("decoding",)
"""Stages that are measured within another."""
SHOWN_PACKAGES = ("lorgnette", "torch", "transformers", "peft", "python")
MAX_FILES = 3
MIN_RATE_GAP = 0.01
"""A peak that is less than this share below the setting has reached it."""


def sum_stages(records: Sequence[Record]) -> dict[str, float]:
    """Stage → its seconds, of a resumed run in all its parts."""
    seconds: dict[str, float] = {}
    for record in records:
        if record.get("kind") == "stage":
            name, value = record["name"], parse_number(record["seconds"]) or 0.0
            seconds[name] = seconds.get(name, 0.0) + value
    return seconds


def describe_comparison(settings: Settings, data: TrainingData, rows: Sequence[PredictionRow], num_steps: int) -> Facts:
    """What the answers before and after are, and to which prompts."""
    if not rows:
        return ()
    model = Path(settings.model).name if Path(settings.model).is_absolute() else settings.model
    model += " in NF4" if data.checkpoint.quantization else ""
    origin = rows[0].before
    before = f"{model} without an adapter" if origin == BASE_MODEL else f"{model} with {origin}"
    steps = f", after {num_steps} {'step' if num_steps == 1 else 'steps'}" if num_steps else ""
    return (
        ("Before", before),
        ("After", f"the same model with this run's adapter{steps}"),
        ("Asked about", _describe_held_out(settings, data, len(rows))),
        ("How", rows[0].generation),
    )


def _describe_held_out(settings: Settings, data: TrainingData, num_prompts: int) -> str:
    """How many prompts, and how their rows were chosen."""
    rows = data.held_out.conversations
    num_rows = len(rows)
    count = f"{num_prompts} held-out {'row' if num_prompts == 1 else 'rows'}"
    if num_rows != num_prompts:
        count = f"{num_prompts} held-out {'prompt' if num_prompts == 1 else 'prompts'} with {num_rows} references"
    if settings.data.test is not None:
        return f"{count}: those of {_join_names(dict.fromkeys(row.source for row in rows))}"
    names = _join_names(dict.fromkeys(row.source for row in rows))
    if settings.data.split == "tail":
        return f"{count}: the last of {names}; an image may also be in the training part"
    copies = map_copies(image.path for row in rows for image in row.images)
    with_copies = ""
    if (num_images := len(set(copies.values()))) < len(copies):
        count += " with 1 image" if num_images == 1 else f" with {num_images} different images"
        with_copies = ", with the copies of their images"
    return f"{count}: from the end of {names}{with_copies}; none of their images is in the training part"


def list_facts(
    settings: Settings,
    data: TrainingData,
    rows: Sequence[PredictionRow],
    records: Sequence[Record],
    manifest: Mapping[str, Any],
) -> list[tuple[str, Facts]]:
    """The facts of a run, in groups. What the log or the manifest lacks is left out."""
    memory = next((record for record in reversed(records) if record.get("kind") == "memory"), {})
    end = next((record["text"] for record in reversed(records) if record.get("kind") == "end"), "")
    seconds = sum(value for name, value in sum_stages(records).items() if name not in PARTS_OF_STAGES)
    lora, train = settings.lora, settings.train
    groups = [
        (
            "Run",
            [
                ("Started", format_date(manifest.get("started"))),
                ("Trained on", _describe_ranks(records, memory)),
                ("Total time", format_duration(seconds) if seconds else ""),
                ("Steps", end),
                ("Examples per step", str(train.batch_size)),
                ("Learning rate", _describe_learning_rate(train.learning_rate, records)),
                ("Seed", str(settings.seed)),
            ],
        ),
        ("Machine", list_machine(manifest, memory)),
        (
            "Model",
            [
                ("Base model", f"{settings.model}{' in NF4' if data.checkpoint.quantization else ''}"),
                ("Adapter", f"LoRA rank {lora.rank}, alpha {lora.alpha}, on {', '.join(lora.parts)}"),
                ("Engine", " ".join(filter(None, [memory.get("engine"), memory.get("dtype")]))),
                ("Image size", describe_image_size(settings.processor, data.processor.image_processor.token_side)),
            ],
        ),
        (
            "Data",
            [
                ("Files", _join_names(data.files)),
                ("Rows", f"{len(data.examples)} trained on, {len(data.held_out)} held out"),
                ("Images", _describe_images(data)),
                ("Prompt", _describe_prompts(data)),
                ("Answers", rows[0].generation if rows else ""),
            ],
        ),
    ]
    return [(title, [fact for fact in facts if fact[1]]) for title, facts in groups]


def _describe_ranks(records: Sequence[Record], memory: Mapping[str, Any]) -> str:
    """How many GPUs or processes trained, in the order of a resumed run; "" where it was always one."""
    counts = [count for count, _ in groupby(r.get("ranks", 1) for r in records if r.get("kind") == "train")]
    if set(counts) <= {1}:
        return ""
    return f"{', then '.join(map(str, counts))} {'GPUs' if memory.get('gpu') else 'processes on the CPU'}"


def _describe_learning_rate(setting: float, records: Sequence[Record]) -> str:
    """The peak that the training reached, if the log has every step's rate."""
    rates = dict(select_series(list(records), *CURVES["learning rate"]))
    highest = max(rates.values(), default=setting)
    if len(rates) < max(rates, default=0) or highest >= setting * (1 - MIN_RATE_GAP):
        return f"{setting:g} at its peak"
    return f"{highest:.2g} at its peak; train.learning_rate={setting:g} was not reached"


def _describe_images(data: TrainingData) -> str:
    copies: Mapping[Path, object] = data.map_image_digests() or map_copies(grid.image.path for grid in data.grids)
    num_images = len(set(copies.values()))
    return f"{num_images} distinct" + (f", in {len(copies)} files" if num_images < len(copies) else "")


def list_machine(manifest: Mapping[str, Any], memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The machine and the versions of a run. memory: the log's record of that kind."""
    machine, versions = manifest.get("machine") or {}, manifest.get("versions") or {}
    cores, gib = machine.get("cores"), machine.get("memory_gib")
    cpu = ", ".join(
        filter(None, [machine.get("cpu"), f"{cores} cores" if cores else "", f"{gib:g} GiB of memory" if gib else ""])
    )
    peak = parse_number(memory.get("peak_gib"))
    where = "of the GPU's memory" if memory.get("gpu") else "of memory"
    if ranks := parse_number(memory.get("num_ranks")):
        where += f", the largest of {ranks:g} {'GPUs' if memory.get('gpu') else 'processes'}"
    names = (f"{name} {versions[name]}" for name in SHOWN_PACKAGES if versions.get(name))
    return [
        ("GPU", memory.get("gpu") or ""),
        ("CPU", cpu),
        ("Peak memory", f"{peak:.1f} GiB {where}" if peak else ""),
        ("System", machine.get("platform") or ""),
        ("Versions", ", ".join(names)),
    ]


def _describe_prompts(data: TrainingData) -> str:
    kinds = data.examples.conversations.group_by_question()
    prompts = {row.turns[-2].text for row, _ in kinds if len(row.turns) > 1}
    if len(prompts) == 1:
        return prompts.pop()
    return f"{len(prompts)} different prompts" if prompts else ""


def _join_names(paths: Sequence[Path] | Mapping[Path, None]) -> str:
    """The names of files. A reader needs no folders, which may say more than should be shared."""
    names = [path.name for path in paths]
    more = f" and {len(names) - MAX_FILES} more" if len(names) > MAX_FILES else ""
    return ", ".join(names[:MAX_FILES]) + more


def format_duration(seconds: float) -> str:
    """`45 s`, `2 min 5 s`, `3 h 12 min`"""
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def list_next_steps(settings: Settings, run_dir: RunDir, rows: Sequence[PredictionRow]) -> list[tuple[str, str]]:
    """(purpose, command) as they are typed in the current folder."""
    run, images = _type_path(run_dir.path), [path for row in rows for path in row.images]
    image = _type_path(images[0]) if images else Path("IMAGE")
    image = Path("IMAGE") if image.is_absolute() else image
    test = settings.data.test
    data, which = (_type_path(test), "the held-out rows") if test else (Path("NEW.csv"), "rows that it has not seen")
    merged = run.parent / f"{run.name}-merged"
    config = find_model_config(settings.model)
    is_served = settings.lora.parts == ("language",) and bool(config and find_unsupported_feature(config) is None)
    return [
        (
            "Ask it about an image, beside the model before",
            format_command("predict", image, "--adapter", run, "--both"),
        ),
        *([("Ask both on a page, or from another program", format_command("serve", run))] if is_served else []),
        (f"See both models' answers to {which} on one page", format_command("compare", "base", run, data)),
        (f"Score its answers to {which}, with intervals", format_command("evaluate", run, data)),
        ("Check that plain transformers + PEFT give the same output", format_command("verify", run)),
        ("Write one checkpoint that needs no adapter", format_command("merge", run, merged)),
    ]


def _type_path(path: Path) -> Path:
    """The path from the current folder, if it is in it."""
    absolute = Path(os.path.abspath(path))
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path


def list_private_folders(settings: Settings, run_dir: RunDir, data: TrainingData) -> list[Path]:
    """Folders that the page leaves out of paths: people share pages."""
    old_run = [settings.adapter.parent] if settings.adapter else []
    paths = [
        run_dir.path,
        *old_run,
        *data.files,
        *(Path(text) for text in (settings.model, settings.data.images_from) if text),
    ]
    absolute = [Path(os.path.abspath(path)).parent for path in paths]
    return [Path.cwd(), *sorted(set(absolute), key=lambda path: -len(str(path)))]
