"""Weights & Biases as a tracker: online with a key, offline without; it asks nothing. Knows nothing about training."""

import contextlib
import netrc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from lorgnette.errors import UsageError
from lorgnette.report.predictions import load_thumbnails
from lorgnette.report.trackers.timeout import call_with_timeout
from lorgnette.types import PredictionRow

Mode = Literal["online", "offline", "shared", "disabled"]

START_SECONDS = 20.0
FINISH_SECONDS = 60.0
IMAGE_SIDE = 560


class WandbTracker:
    """Keeps its files under folder/wandb (W&B adds that name itself)."""

    def __init__(self, project: str, experiment: str, folder: Path, warn: Callable[[str], None]) -> None:
        self._project, self._experiment, self._folder, self._warn = project, experiment, folder, warn
        self._run: Any = None
        self._mode: Mode = "offline"

    @property
    def address(self) -> str | None:
        if self._run is None or self._mode == "disabled":
            return None
        return self._sync_command if self._mode == "offline" else str(self._run.url)

    @property
    def _sync_command(self) -> str:
        return f"wandb sync {Path(self._run.dir).parent}"

    def start(self, settings: Mapping[str, object]) -> None:
        self._mode = select_mode()
        try:
            self._run = self._start_run(self._mode, settings)
        except Exception as error:
            if self._mode != "online":
                raise
            reason = " ".join(str(error).split())[:200]
            self._warn(f"W&B could not go online ({reason}); recording offline, `wandb sync` uploads it later")
            self._mode = "offline"
            self._run = self._start_run("offline", settings)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def log_predictions(self, rows: Sequence[PredictionRow], step: int) -> None:
        import wandb

        columns = ["id", "prompt", "reference", "before", "after"]
        table = wandb.Table(columns, [[r.id, r.prompt, "\n".join(r.references), r.base, r.tuned] for r in rows])
        images = [wandb.Image(image, caption=caption) for image, caption in load_thumbnails(rows, IMAGE_SIDE)]
        media = {"Prediction texts": table} | ({"Prediction": images} if images else {})
        with _redirect_cache(self._folder / "wandb"):
            self._run.log(media, step=step)

    def finish(self) -> None:
        if self._run is None:
            return
        try:
            call_with_timeout(FINISH_SECONDS, self._run.finish)
        except TimeoutError:
            self._warn(f"W&B is still uploading; to upload the rest later: {self._sync_command}")

    def _start_run(self, mode: Mode, settings: Mapping[str, object]) -> Any:
        import wandb

        with _redirect_cache(self._folder / "wandb"):
            limits: Any = {"init_timeout": START_SECONDS, "login_timeout": START_SECONDS}
            quiet = wandb.Settings(silent=True, console="off", disable_git=True, **limits)
            names: Any = {"project": self._project, "name": self._experiment, "dir": str(self._folder)}
            return wandb.init(mode=mode, config=dict(settings), settings=quiet, **names)


def select_mode() -> Mode:
    """WANDB_MODE if set, else online if a key is stored, else offline."""
    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        return "online" if _has_key() else "offline"
    if mode not in ("online", "offline", "shared", "disabled"):
        raise UsageError(f"WANDB_MODE is {mode!r}", where="environment", hint="set it to online, offline or disabled")
    if mode == "online" and not _has_key():
        return "offline"  # W&B would ask for a key
    return cast(Mode, mode)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    for file in (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if file and netrc.netrc(str(file)).authenticators(host):
                return True
    return False


@contextlib.contextmanager
def _redirect_cache(folder: Path) -> Iterator[None]:
    """Keep W&B's logs and staged tables in `folder` during the block, instead of ~/.cache and ~/.local."""
    folders = {"WANDB_CACHE_DIR": folder / "cache", "WANDB_DATA_DIR": folder / "data"}
    variables = {name: str(path) for name, path in folders.items() if name not in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
