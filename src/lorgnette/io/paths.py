"""Where a verb writes: looked at before anything takes time. No torch."""

from pathlib import Path
from tempfile import TemporaryFile

from lorgnette.errors import LorgnetteError, UsageError


def check_writable(out: Path, *inputs: Path) -> None:
    """Before the work: what comes of it must find a place, and not the place of a file that it is made from."""
    if out.exists() and any(file.exists() and out.samefile(file) for file in inputs):
        raise UsageError("it would overwrite what it is made from", where=f"--out {out}", hint="name another file")
    if out.is_dir():
        raise UsageError("a folder, not a file", where=f"--out {out}", hint="name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise LorgnetteError(
            f"cannot write: {error.strerror}", where=f"--out {out}", hint="name another place"
        ) from error
