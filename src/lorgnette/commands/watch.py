"""`watch`: the local dashboard of a run that SwanLab tracked."""

import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from lorgnette.errors import LorgnetteError
from lorgnette.report.console import Terminal
from lorgnette.report.run import Run
from lorgnette.report.run_dir import RunDir
from lorgnette.report.trackers.tracker import is_installed

HOST = "127.0.0.1"


def watch(run: Path | str | Run, *, port: int = 5092, console: Console | None = None) -> None:
    """Serve SwanLab's local dashboard of a run until Ctrl-C.

    Raises LorgnetteError if the run has no SwanLab folder or the dashboard is not installed.
    """
    run_dir = RunDir.open_existing(Path(run))
    folder, where = run_dir.path / "swanlab", str(run_dir.path)
    if not folder.is_dir():
        hint = f"open its report: {run_dir.report}"
        if run_dir.is_taught and not run_dir.report.is_file():
            hint = f"its page shows how far it is: {run_dir.resume_command}"
        raise LorgnetteError("SwanLab did not track this run", where=where, hint=hint)
    program = shutil.which("swanlab", path=str(Path(sys.executable).parent)) or shutil.which("swanlab")
    if program is None or not is_installed("swanboard"):
        hint = "pip install 'swanlab[dashboard]'"
        raise LorgnetteError("SwanLab's local dashboard is not installed", where=where, hint=hint)
    Terminal(console).print_result(f"dashboard  http://{HOST}:{port}, until Ctrl-C")
    command = [program, "watch", str(folder), "--host", HOST, "--port", str(port)]
    process = subprocess.run(command, check=False)  # noqa: S603 - the program next to this Python, a folder of ours
    if process.returncode not in (0, 130, -2):
        raise LorgnetteError(f"the dashboard exited with status {process.returncode}", where=" ".join(command))
