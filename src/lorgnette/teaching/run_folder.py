"""The folder of a `teach` run: found again by its images, with the settings that it was started with.

config.yaml is such that `lorgnette train RUN/config.yaml run=ELSEWHERE` makes the run's adapter from its captions.csv.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lorgnette import config
from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.inference.loading import resolve_adapter
from lorgnette.io.atomic import write_json, write_text
from lorgnette.io.folder_kind import explain_folder, find_folder_kind
from lorgnette.io.shell import format_command
from lorgnette.report.console import Terminal
from lorgnette.report.html.page import flatten_settings
from lorgnette.report.manifest import build_manifest
from lorgnette.report.run_dir import RunDir, is_free
from lorgnette.resolve import portable_name
from lorgnette.synonyms import COMMAND_LINE
from lorgnette.teaching.events import Opened
from lorgnette.teaching.images import ImageList
from lorgnette.teaching.journal import read_events
from lorgnette.training.initial_adapter import build_manifest_entry

RECIPES = ("teach", "teach-demo")
IMAGES_FOLDER = "images"
"""In the run of `teach demo`: what it draws."""
_MACHINE = ("device", "predict.batch_size", "train.max_tokens_per_microbatch")
"""Settings that may change when a run goes on: another machine may need others."""
_UNUSED = (
    "data.test", "data.holdout", "data.split", "data.on_bad_row", "data.max_rows", "data.images_from",
    "data.image_column", "data.caption_column", "data.group_by_image", "train.fully_shard", "train.logging_steps",
    "train.save_steps", "train.eval_steps", "train.metric_for_best_model", "train.early_stopping_patience",
    "predict.metrics", "report_to", "project",
)  # fmt: skip
"""Settings without a meaning here: nothing is held out, and the data are the images."""
_NEW = {"config.yaml", "manifest.json", ".lock", IMAGES_FOLDER}
"""What a run may have that was stopped before its page opened."""


@dataclass(frozen=True)
class TeachRun:
    """A run to begin or to go on with. settings, source, opened: of a run that goes on; None for a new one.

    source: its images, as an absolute path. opened: how it was opened last.
    """

    run_dir: RunDir
    settings: Settings | None = None
    source: Path | None = None
    opened: Opened | None = None


def find_run(name: str, find_source: Callable[[Path], Path]) -> TeachRun:
    """The run runs/NAME, or runs/NAME-2 …, that teaches the source, else the first of these folders that is free.

    find_source: run folder → the source that it would teach.
    """
    for number in count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if _is_new(path):
            return TeachRun(RunDir(path))
        if find_folder_kind(path) == "run" and RunDir(path).is_taught:
            run = open_run(path)
            if run.source in (None, Path(os.path.abspath(find_source(path)))):
                return run
    raise AssertionError


def open_run(path: Path) -> TeachRun:
    """The run in a folder, or a new one. Raises UsageError if the folder holds anything else."""
    run_dir = RunDir(path)
    if _is_new(path):
        return TeachRun(run_dir)
    if not (run_dir.is_taught and run_dir.config.is_file()):
        if find_folder_kind(path) == "run":
            hint = f"go on from its adapter: {format_command('teach', 'IMAGES', f'adapter={path}')}"
            raise UsageError("a run of `train`, not of `teach`", where=str(path), hint=hint)
        if run_dir.is_taught:
            raise explain_folder(path, "run", lacks="config.yaml")
        raise UsageError("not a run, and not empty", where=f"--run {path}", hint="name a new folder")
    settings = config.load_settings(config.read_recipe(run_dir.config), where=str(run_dir.config))
    opened = [event for event in read_events(run_dir.journal) if isinstance(event, Opened)]
    if not opened:
        return TeachRun(run_dir)
    return TeachRun(run_dir, settings, Path(opened[-1].folder), opened[-1])


def _is_new(path: Path) -> bool:
    if is_free(path):
        return True
    is_stub = path.is_dir() and {child.name for child in path.iterdir()} <= _NEW
    return is_stub and not (path / "log.jsonl").exists()


def check_settings(given: Settings, terminal: Terminal) -> None:
    """Refuse a setting that has no meaning here with a UsageError; warn of one that a recipe has."""
    named = [name for name in _UNUSED if name in given.sources and given.sources[name] not in RECIPES]
    for name in named:
        if given.sources[name] in (COMMAND_LINE, "arguments"):
            where = f"{name}={_list_values(given)[name]}"
            raise UsageError(f"`teach` does not use {name}", where=where, hint="leave it out")
    if named:
        terminal.warn(f"setting    not used by `teach`: {', '.join(named)}")


def merge_settings(run: TeachRun, given: Settings) -> Settings:
    """Take from the given settings of a run that goes on those that only the machine needs.

    One run has one score, which means nothing if the model or the question changes on the way. So another given setting
    that differs raises UsageError. What is not given stays as it was.
    """
    assert run.settings is not None
    kept, wanted = _list_values(run.settings), _list_values(_make_portable(given))
    wished = {name for name, source in given.sources.items() if source not in RECIPES} - {"data.path", "run"}
    changed = [name for name in config.list_settings() if name in wished and wanted[name] != kept[name]]
    if different := [name for name in changed if name not in _MACHINE]:
        facts = ", ".join(f"{name} is {kept[name]}, not {wanted[name]}" for name in different)
        path = run.run_dir.path
        hint = f"leave {'it' if len(different) == 1 else 'them'} out to go on, or begin another run: --run {path}-2"
        raise UsageError(f"this run was started with other settings: {facts}", where=str(path), hint=hint)
    tree = run.settings.model_dump()
    for name in changed:
        section, _, field = name.rpartition(".")
        values = getattr(given, section) if section else given
        (tree[section] if section else tree)[field] = getattr(values, field)
    return Settings.model_validate(tree)


def build_train_settings(settings: Settings, run_dir: RunDir, images: ImageList) -> Settings:
    """The settings with which `train` reads the run's answers and makes its adapter."""
    data = settings.data.model_copy(
        update={
            "path": run_dir.captions.resolve(), "images_from": str(images.folder), "prompt": images.prompt,
            "holdout": 0, "test": None, "max_rows": None, "image_column": None, "caption_column": None,
        }
    )  # fmt: skip
    return _make_portable(settings).model_copy(update={"data": data, "run": run_dir.path.resolve()})


def write_config(run_dir: RunDir, settings: Settings) -> None:
    write_text(run_dir.config, config.dump_settings(settings))


def write_manifest(run_dir: RunDir, settings: Settings, images: ImageList, answered: Iterable[str]) -> None:
    """Which images the adapter is trained on, for commands that ask it about others. answered: their names."""
    numbers = sorted({images.numbers[name] for name in answered if name in images.numbers})
    hashes = {str(images.paths[number].resolve()): images.hash_image(number) for number in numbers}
    adapter = build_manifest_entry(settings.adapter) if settings.adapter else None
    manifest = build_manifest(
        seed=settings.seed, command=sys.argv, device=settings.device, image_hashes=hashes,
        num_training_images=len(hashes), adapter=adapter,
    )  # fmt: skip
    write_json(run_dir.manifest, manifest)


def _make_portable(settings: Settings) -> Settings:
    """Model and adapter as a run keeps them."""
    adapter = settings.adapter and resolve_adapter(settings.adapter).resolve()
    return settings.model_copy(update={"model": portable_name(settings.model), "adapter": adapter})


def _list_values(settings: Settings) -> Mapping[str, Any]:
    return dict(flatten_settings(settings.model_dump(mode="json")))
