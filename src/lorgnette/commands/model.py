"""`model list`: the models that can be trained, with what each needs. Imports no torch and asks no hub.

Sizes are facts of the families; memory is what `plan` predicts for one typical run.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette.commands.cache import format_size
from lorgnette.config import Settings
from lorgnette.engine.select import select_engine
from lorgnette.hub.models import find_in_cache
from lorgnette.models.family import ModelSize
from lorgnette.models.registry import FAMILIES, find_unsupported_feature, parse_sizes
from lorgnette.planning.memory import GIB, EngineName, Workload, predict_memory
from lorgnette.report.console import Terminal
from lorgnette.types import Image, ImageGrid

NUM_IMAGES = 500
"""As many as the tutorial has; their features are kept on the GPU."""
TEXT_TOKENS, LABELS = 45, 20
"""Of an example: a short prompt, the template and a caption; the caption with its end token."""
_BYTES_PER_VALUE = 2
_NAME_WIDTH, _OWNER = 30, "Qwen/"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A size of a family.

    names: on the hubs, the usual one first. reason: why it runs in the reference engine. download_bytes: the weights in
    bfloat16. memory_bytes: the peak of a typical run. cached: its names in a hub's cache.
    """

    family: str
    names: tuple[str, ...]
    engine: EngineName
    reason: str | None
    parameters: int
    download_bytes: int
    memory_bytes: int
    cached: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def show_models(*, console: Console | None = None) -> list[ModelEntry]:
    """Print the models that can be trained, by family and size."""
    terminal, entries = Terminal(console), list_models()
    for line in format_models(entries):
        terminal.print_result(line)
    return entries


def format_models(entries: list[ModelEntry]) -> Iterator[str]:
    """The lines of the table, at most 80 columns wide, and what its figures are."""
    yield _format_row("model", "parameters", "disk", "GPU memory", "engine", "cached")
    for entry in entries:
        cells = (
            f"{entry.parameters / 1e9:.1f} B",
            format_size(entry.download_bytes),
            f"{entry.memory_bytes / GIB:.1f} GiB",
        )
        name, *others = (name.removeprefix(_OWNER) for name in entry.names)
        yield _format_row(name, *cells, entry.engine, _format_cache_state(entry))
        for other in others:
            yield f"  or {other}"
    yield from _list_notes(entries)


def list_models(*, cached: bool = True) -> list[ModelEntry]:
    """All sizes of all families, by family and size. cached: whether to look for them on this machine."""
    families = sorted(FAMILIES.values(), key=lambda family: family.title)
    entries = [_build_entry(family.title, size) for family in families for size in family.sizes]
    if not cached:
        return entries
    return [replace(entry, cached=tuple(filter(find_in_cache, entry.names))) for entry in entries]


def find_entry(name: str) -> ModelEntry | None:
    """The entry of the model OWNER/NAME; None if the list does not have it."""
    families = FAMILIES.values()
    found = [(family.title, size) for family in families for size in family.sizes if name in size.names]
    return _build_entry(*found[0]) if found else None


def _build_entry(family: str, size: ModelSize) -> ModelEntry:
    settings = Settings()
    engine, _ = select_engine(settings, size.config, on_gpu=True)
    shapes = (part.list_weight_shapes() for part in parse_sizes(size.config))
    parameters = sum(math.prod(shape) for part in shapes for shape in part.values())
    memory = predict_memory(build_workload(settings, size, engine)).peak_bytes
    reason = find_unsupported_feature(size.config)
    return ModelEntry(family, size.names, engine, reason, parameters, _BYTES_PER_VALUE * parameters, memory)


def build_workload(
    settings: Settings, size: ModelSize, engine: EngineName, image_tokens: int | None = None
) -> Workload:
    """A step in one micro-batch, with the features of NUM_IMAGES images on the GPU. image_tokens: of an image, instead
    of those of the settings' size."""
    merge = size.config["vision_config"]["spatial_merge_size"]
    rows, columns = merge, merge * (image_tokens or 1)
    if image_tokens is None:
        assert settings.image_size is not None
        rows, columns = (max(1, round(side / size.token_side)) * merge for side in settings.image_size)
    grids = [ImageGrid(Image(Path(str(i))), 1, rows, columns, merge) for i in range(NUM_IMAGES)]
    batch = settings.train.batch_size
    largest = batch * (TEXT_TOKENS + grids[0].num_tokens), batch * LABELS
    return Workload.from_settings(settings, size.config, engine, largest, [], grids)


def _format_cache_state(entry: ModelEntry) -> str:
    if not entry.cached:
        return ""
    return "yes" if len(entry.names) == 1 or entry.names[0] in entry.cached else "a variant"


def _format_row(name: str, parameters: str, disk: str, memory: str, engine: str, cached: str) -> str:
    return f"{name:<{_NAME_WIDTH}} {parameters:>9} {disk:>8} {memory:>10} {engine:<9} {cached}".rstrip()


def _list_notes(entries: list[ModelEntry]) -> list[str]:
    settings = Settings()
    height, width = settings.image_size or (0, 0)
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry.reason:
            families = reasons.setdefault(entry.reason, [])
            families += [entry.family] if entry.family not in families else []
    return [
        "disk        the weights in bfloat16",
        f"GPU memory  LoRA of rank {settings.lora.rank} in bfloat16, {NUM_IMAGES} images of {height}×{width},",
        f"            {settings.train.batch_size} examples a step with {TEXT_TOKENS} tokens of text: predicted",
        *(f"reference   because of {reason}: {', '.join(names)}" for reason, names in reasons.items()),
        "names       -Instruct may be left out, if no other model has the shorter name",
    ]
