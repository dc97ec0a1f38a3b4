"""`train` and `resume`: everything that can be wrong is found here, before torch is imported and weights are read."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from lorgnette import config, startup
from lorgnette.config import Settings
from lorgnette.gc_pause import gc_paused
from lorgnette.io.atomic import write_json, write_text
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import build_manifest, compute_sha256
from lorgnette.report.run_dir import RunDir, find_free_path
from lorgnette.report.stage_timer import StageTimer
from lorgnette.resolve import portable_name, resolve_images_folder
from lorgnette.training.data_module import TrainingData
from lorgnette.training.job import Job


def train(settings: Settings, *, name: str = "run", console: Console | None = None) -> RunDir:
    """Tune an adapter in a new run folder: `settings.run`, or the next free runs/NAME."""
    terminal = Terminal(console)
    stages = StageTimer(terminal)
    if settings.run is not None:
        RunDir.check_is_free(settings.run)
    with stages("data"):
        material = TrainingData.load(settings, terminal)
    folder = RunDir.create(settings.run or find_free_path(Path("runs"), name))
    with _discard_failed_run(folder):
        write_text(folder.config, config.dump_settings(_resolve_paths(settings, folder)))
        hashes = {str(path): compute_sha256(path) for path in material.files} | {
            "weights": material.checkpoint.fingerprint
        }
        write_json(
            folder.manifest, build_manifest(seed=settings.seed, command=sys.argv, device=settings.device, hashes=hashes)
        )
        _import_and_train(Job(folder, settings, material, stages, terminal))
    return folder


def resume(path: Path | str, *, console: Console | None = None) -> RunDir:
    """Go on with a run that was stopped, from its latest checkpoint, as if it had never stopped."""
    terminal = Terminal(console)
    folder = RunDir.open_existing(Path(path))
    chosen = config.load_settings(config.read_recipe(folder.config), where=str(folder.config))
    stages = StageTimer(terminal)
    with stages("data"):
        material = TrainingData.load(chosen, terminal)
    material.check_unchanged(folder.manifest)
    _import_and_train(Job(folder, chosen, material, stages, terminal))
    return folder


def _resolve_paths(chosen: Settings, folder: RunDir) -> Settings:
    """The settings with whole paths: a run can be resumed from another folder than it was started in."""
    data = {name: path.resolve() for name in ("path", "test") if (path := getattr(chosen.data, name)) and path.exists()}
    place = resolve_images_folder(chosen)
    pictures = {"images_from": str(place.resolve())} if place and place.exists() else {}
    return chosen.model_copy(
        update={
            "run": folder.path.resolve(),
            "model": portable_name(chosen.model),
            "data": chosen.data.model_copy(update={**data, **pictures}),
        }
    )


@contextmanager
def _discard_failed_run(folder: RunDir) -> Iterator[None]:
    """A run that fails before its log is begun, that is before its first step, leaves nothing: its name is free.

    Where others have put something there (a tracker does, before the log), it stays a run that can be resumed.
    """
    try:
        yield
    except BaseException:
        ours = (folder.config, folder.manifest)
        if set(folder.path.iterdir()) <= set(ours):
            for path in ours:
                path.unlink(missing_ok=True)
            folder.path.rmdir()
        raise


def _import_and_train(job: Job) -> None:
    with job.stages("imports"):
        if job.settings.device != "cpu":
            startup.start_cuda_init()
        with gc_paused():
            from lorgnette.training.run import run_training
    run_training(job)
