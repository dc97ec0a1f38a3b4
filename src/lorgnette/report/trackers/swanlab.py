"""SwanLab as a tracker: it selects a mode by itself, asks nothing, prints nothing, never hangs.

Mode: SWANLAB_MODE if set; online with an API key (environment, SwanLab's own files) if the host responds; local if the
dashboard is installed; else offline. It is never online for report_to=auto: only a tracker that is named may upload.
Knows nothing about training.
"""

import contextlib
import importlib.util
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from lorgnette.errors import UsageError
from lorgnette.report.predictions import load_thumbnails
from lorgnette.report.trackers.timeout import call_with_timeout
from lorgnette.types import PredictionRow

Mode = Literal["online", "local", "offline", "disabled"]

CHECK_SECONDS = 5.0
START_SECONDS = 20.0
FINISH_SECONDS = 60.0
"""Limit for the last uploads; the rest stays in the folder for `swanlab sync`."""
IMAGE_SIDE = 560
UPLOAD_LATER = "`swanlab sync` uploads it later"


class SwanlabTracker:
    """Keeps its files under folder/swanlab."""

    def __init__(
        self, project: str, experiment: str, folder: Path, warn: Callable[[str], None], *, may_upload: bool = True
    ) -> None:
        self._may_upload = may_upload
        self._project, self._experiment, self._warn = project, experiment, warn
        self._folder = folder / "swanlab"
        self._run: Any = None
        self._previous_log_dir = os.environ.get("SWANLAB_LOG_DIR")
        self._has_warned_of_gaps = False
        self.mode: Mode | None = None

    @property
    def address(self) -> str | None:
        if self.mode == "online":
            return str(self._run.url)
        if self.mode == "local":
            return f"swanlab watch {self._folder}"
        return f"swanlab sync {self._run.dir}" if self.mode == "offline" else None

    def start(self, settings: Mapping[str, object]) -> None:
        mode, warning = select_mode(may_upload=self._may_upload)
        if warning:
            self._warn(warning)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = self._start_run(mode, settings)
        except Exception as error:
            if mode != "online":
                raise
            mode = "offline"
            self._warn(f"SwanLab could not go online ({_shorten_error(error)}); recording offline, {UPLOAD_LATER}")
            self._run = self._start_run(mode, settings)
        self.mode = mode

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        values = dict(metrics)
        if self.mode == "local":
            # One non-finite value breaks a whole chart of its dashboard.
            values = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if len(values) < len(metrics) and not self._has_warned_of_gaps:
            self._has_warned_of_gaps = True
            dropped = ", ".join(name for name in metrics if name not in values)
            effect = "SwanLab's dashboard leaves a gap, log.jsonl has the value"
            self._warn(f"{dropped} is not finite at step {step}; {effect}")
        if values:
            self._run.log(values, step=step)

    def log_predictions(self, rows: Sequence[PredictionRow], step: int) -> None:
        """Log the images under "Prediction" with the texts as captions, and the texts again as a readable list."""
        import swanlab

        thumbnails = load_thumbnails(rows, IMAGE_SIDE)
        images = [swanlab.Image(image, caption=caption, file_type="jpg") for image, caption in thumbnails]
        texts = [swanlab.Text(row.caption, caption=row.id) for row in rows]
        media = {"Prediction": images, "Prediction texts": texts}
        if rows:  # to log nothing is an error there
            self._run.log({key: items for key, items in media.items() if items}, step=step)

    def finish(self) -> None:
        if self._run is None:
            return
        try:
            with _suppress_output():
                call_with_timeout(FINISH_SECONDS, self._run.finish)
        except TimeoutError:
            self._warn(f"SwanLab is still uploading; to upload the rest later: swanlab sync {self._run.dir}")
        finally:
            # Local mode sets SWANLAB_LOG_DIR, and every later run of this process would write here.
            os.environ.pop("SWANLAB_LOG_DIR", None)
            if self._previous_log_dir is not None:
                os.environ["SWANLAB_LOG_DIR"] = self._previous_log_dir

    def _start_run(self, mode: Mode, settings: Mapping[str, object]) -> Any:
        import swanlab

        def start() -> Any:
            quiet = swanlab.Settings(
                interactive=False,
                # The proxy would wrap stdout and stderr, and record every frame of a progress bar.
                terminal=swanlab.Settings.Terminal(proxy_type="none"),
                # runtime is the host's name and the working folder, git the remote's address.
                probe=swanlab.Settings.Probe(runtime=False, git=False),
            )
            names: Any = {"project": self._project, "experiment_name": self._experiment, "log_dir": str(self._folder)}
            return swanlab.init(mode=mode, config=dict(settings), settings=quiet, **names)

        # Started outside the main thread SwanLab installs no Ctrl+C handler, so ours can save a checkpoint.
        with _suppress_output():
            return call_with_timeout(START_SECONDS, start)


def select_mode(*, may_upload: bool = True) -> tuple[Mode, str | None]:
    """(mode, a warning if it is not the mode that was set or that the API key allows)."""
    import swanlab

    try:
        settings = swanlab.Settings()
    except ValueError as error:
        message = f"SwanLab's settings are not valid: {_shorten_error(error)}"
        hint = "SWANLAB_MODE is one of online, local, offline, disabled"
        raise UsageError(message, where="SWANLAB_* in the environment", hint=hint) from error
    is_set = "mode" in settings.model_fields_set
    if is_set and settings.mode != "online":
        return cast(Mode, settings.mode), None
    # Without the dashboard's package, local mode prints an error and loses its charts.
    mode: Mode = "local" if importlib.util.find_spec("swanboard") else "offline"
    if not may_upload:
        warning = "report_to=auto does not upload: SwanLab records on this machine; report_to=swanlab uploads"
        return mode, warning if is_set or settings.api_key else None
    if not settings.api_key:
        warning = "SWANLAB_MODE is online but there is no API key (swanlab login); recording on this machine"
        return mode, warning if is_set else None
    reason = _find_connection_error(settings.api_host)
    if reason:
        return "offline", f"SwanLab's {settings.api_host} {reason}; recording offline, {UPLOAD_LATER}"
    return "online", None


def _find_connection_error(host: str) -> str | None:
    """Why the host cannot be reached; None if it responds. Name resolution may hang, so the time is limited."""
    import requests

    try:
        call_with_timeout(CHECK_SECONDS, lambda: requests.head(host, timeout=CHECK_SECONDS).close())
    except TimeoutError:
        return f"does not respond within {CHECK_SECONDS:g} s"
    except requests.RequestException as error:
        return f"cannot be reached ({type(error).__name__})"
    return None


@contextlib.contextmanager
def _suppress_output() -> Iterator[None]:
    """SwanLab prints to stdout, over our progress bar, and its hardware probe imports a deprecated package."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The pynvml package is deprecated", category=FutureWarning)
        yield


def _shorten_error(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
