"""`train` and `resume`: everything that can be wrong is found here, before torch is imported and weights are read."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from lorgnette import config, startup
from lorgnette.config import Settings
from lorgnette.gc_pause import uncollected
from lorgnette.io.atomic import write_json, write_text
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import manifest, sha256
from lorgnette.report.run_dir import RunFolder, next_free
from lorgnette.report.stage_timer import Stages
from lorgnette.resolve import lasting, pictures_of
from lorgnette.training.data_module import Material
from lorgnette.training.job import Job


def train(chosen: Settings, *, name: str = "run", console: Console | None = None) -> RunFolder:
    """Tune an adapter in a new run folder: `settings.run`, or the next free runs/NAME."""
    terminal = Terminal(console)
    stages = Stages(terminal)
    if chosen.run is not None:
        RunFolder.must_be_free(chosen.run)
    with stages("data"):
        material = Material.of(chosen, terminal)
    folder = RunFolder.create(chosen.run or next_free(Path("runs"), name))
    with _taken_back(folder):
        write_text(folder.config, config.dump(_placed(chosen, folder)))
        hashes = {str(path): sha256(path) for path in material.files} | {"weights": material.checkpoint.fingerprint}
        write_json(folder.manifest, manifest(seed=chosen.seed, command=sys.argv, device=chosen.device, hashes=hashes))
        _tune(Job(folder, chosen, material, stages, terminal))
    return folder


def resume(path: Path | str, *, console: Console | None = None) -> RunFolder:
    """Go on with a run that was stopped, from its latest checkpoint, as if it had never stopped."""
    terminal = Terminal(console)
    folder = RunFolder.existing(Path(path))
    chosen = config.load(config.read_recipe(folder.config), where=str(folder.config))
    stages = Stages(terminal)
    with stages("data"):
        material = Material.of(chosen, terminal)
    material.demand_unchanged(folder.manifest)
    _tune(Job(folder, chosen, material, stages, terminal))
    return folder


def _placed(chosen: Settings, folder: RunFolder) -> Settings:
    """The settings with whole paths: a run can be resumed from another folder than it was started in."""
    data = {name: path.resolve() for name in ("path", "test") if (path := getattr(chosen.data, name)) and path.exists()}
    place = pictures_of(chosen)
    pictures = {"images_from": str(place.resolve())} if place and place.exists() else {}
    return chosen.model_copy(
        update={
            "run": folder.path.resolve(),
            "model": lasting(chosen.model),
            "data": chosen.data.model_copy(update={**data, **pictures}),
        }
    )


@contextmanager
def _taken_back(folder: RunFolder) -> Iterator[None]:
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


def _tune(job: Job) -> None:
    with job.stages("imports"):
        if job.settings.device != "cpu":
            startup.wake()
        with uncollected():
            from lorgnette.training.run import tune
    tune(job)
