"""`train` and `resume`: everything that can be wrong is found before torch is imported and weights are read."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette import config
from lorgnette.config import Settings
from lorgnette.io.atomic import write_json, write_text
from lorgnette.io.paths import join_sources, split_sources
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import build_manifest
from lorgnette.report.run_dir import RunDir, find_free_path
from lorgnette.report.stage_timer import StageTimer
from lorgnette.report.trackers.tracker import open_trackers
from lorgnette.resolve import portable_name, resolve_images_folder
from lorgnette.startup import gc_paused, start_cuda_init
from lorgnette.training.data_module import TrainingData
from lorgnette.training.initial_adapter import build_manifest_entry, describe_seen_images, inherit_settings
from lorgnette.training.user_callbacks import UserCallbacks


def train(
    settings: Settings, *, name: str = "run", callbacks: Sequence[Any] = (), console: Console | None = None
) -> RunDir:
    """Train an adapter in a new run folder: `settings.run`, or the next free runs/NAME."""
    terminal, user_callbacks = Terminal(console), UserCallbacks(callbacks)
    timer = StageTimer(terminal)
    if settings.run is not None:
        RunDir.check_is_free(settings.run)
    settings = inherit_settings(settings, terminal)
    with timer("data"):
        data = TrainingData.load(settings, terminal)
        settings = data.choose_metrics(settings, terminal)
        hashes, image_hashes = data.hash_inputs(), data.hash_images()
        adapter = build_manifest_entry(settings.adapter) if settings.adapter else None
        if adapter and (note := describe_seen_images(adapter, data.select_held_out(image_hashes))):
            terminal.warn(note)
    run_dir = RunDir.create(settings.run or find_free_path(Path("runs"), name))
    with run_dir.lock(terminal.warn) as locked, _discard_failed_run(locked):
        RunDir.check_is_free(run_dir.path)
        manifest = build_manifest(
            seed=settings.seed, command=sys.argv, device=settings.device, hashes=hashes, image_hashes=image_hashes,
            num_training_images=data.num_training_images, adapter=adapter,
        )  # fmt: skip
        write_json(run_dir.manifest, manifest)
        write_text(run_dir.config, config.dump_settings(_make_absolute(settings, run_dir)))
        _train(settings, locked, data, user_callbacks, timer, terminal)
    return run_dir


def resume(path: Path | str, *, callbacks: Sequence[Any] = (), console: Console | None = None) -> RunDir:
    """Continue a stopped run from its latest checkpoint. The result is the same as without the stop."""
    terminal, user_callbacks = Terminal(console), UserCallbacks(callbacks)
    timer = StageTimer(terminal)
    run_dir = RunDir.open_existing(Path(path))
    with run_dir.lock(terminal.warn) as locked:
        settings = config.load_settings(config.read_recipe(run_dir.config), where=str(run_dir.config))
        with timer("data"):
            data = TrainingData.load(settings, terminal)
            data.check_unchanged(run_dir.manifest)
            settings = data.choose_metrics(settings, terminal)
        _train(settings, locked, data, user_callbacks, timer, terminal)
    return run_dir


def _train(
    settings: Settings,
    run_dir: RunDir,
    data: TrainingData,
    user_callbacks: UserCallbacks,
    timer: StageTimer,
    terminal: Terminal,
) -> None:
    # What torch is not needed for: a tracker that is not installed is an error now.
    trackers = open_trackers(settings.report_to, settings.project, run_dir.path, terminal.warn)
    eval_processor = data.build_eval_processor(settings.processor, settings.predict.image_size)
    if "demo" in settings.predict.metrics:
        from lorgnette.commands.demo import register_facts_metric

        register_facts_metric()

    # CUDA starts on a thread while torch is imported.
    with timer("imports"):
        if settings.device != "cpu":
            start_cuda_init()
        with gc_paused():
            from lorgnette.training.run import run_training
    run_training(settings, run_dir, data, eval_processor, trackers, timer, terminal, user_callbacks)


def _make_absolute(settings: Settings, run_dir: RunDir) -> Settings:
    """The settings with absolute paths, so that a run can be resumed from any folder."""
    inputs = {"path": settings.data.path, "test": settings.data.test, "images_from": resolve_images_folder(settings)}
    paths: dict[str, Any] = {name: _make_path_absolute(path) for name, path in inputs.items() if path}
    if "images_from" in paths:
        paths["images_from"] = str(paths["images_from"])
    data = settings.data.model_copy(update=paths)
    model = portable_name(settings.model)
    adapter = settings.adapter and settings.adapter.resolve()
    return settings.model_copy(
        update={"run": run_dir.path.resolve(), "model": model, "adapter": adapter, "data": data}
    )


def _make_path_absolute(path: Path) -> Path:
    """The path, or the list of paths, from the root; what is no path on this machine stays as it is."""
    return join_sources(source.resolve() if source.exists() else source for source in split_sources(path))


@contextmanager
def _discard_failed_run(run_dir: RunDir) -> Iterator[None]:
    """Remove the folder of a run that fails before its log is opened, that is before its first step.

    A folder with other files in it (a tracker starts before the log) stays, and can be resumed.
    """
    try:
        yield
    except BaseException:
        own_files = (run_dir.config, run_dir.manifest, run_dir.lock_file)
        if run_dir.is_in_place and set(run_dir.path.iterdir()) <= set(own_files):
            for path in own_files:
                path.unlink(missing_ok=True)
            run_dir.path.rmdir()
        raise
