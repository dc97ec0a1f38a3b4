"""Checks an output path before the work starts."""

from pathlib import Path
from tempfile import TemporaryFile

from lorgnette.errors import LorgnetteError, UsageError


def check_writable(out: Path, *inputs: Path) -> None:
    """Raises UsageError if `out` is a folder or one of the inputs, LorgnetteError if it cannot be written."""
    if out.exists() and any(file.exists() and out.samefile(file) for file in inputs):
        raise UsageError("the output would overwrite its own input", where=f"--out {out}", hint="name another file")
    if out.is_dir():
        raise UsageError("a folder, not a file", where=f"--out {out}", hint="name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        where, hint = f"--out {out}", "choose another folder"
        raise LorgnetteError(f"cannot write: {error.strerror}", where=where, hint=hint) from error
