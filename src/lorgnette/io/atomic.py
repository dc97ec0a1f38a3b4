"""Write beside, then rename: a file or folder is whole or it is as it was before."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorgnette.errors import LorgnetteError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a file to write beside `path`; it takes the name `path` once the block ends without an error."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            _fsync(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. What stood at `path` is removed only when the new folder is complete.

    Its files may be read by whoever may enter it: safetensors makes them for their owner alone (mode 0600).
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    retired = path.with_name(f".{path.name}.{os.getpid()}.old")
    with _explain_os_errors(path):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            yield beside
            for file in beside.rglob("*"):
                if file.is_file():
                    file.chmod(file.stat().st_mode | (beside.stat().st_mode & 0o666))  # the umask's, as mkdir took it
                    _fsync(file)
            if path.exists():
                shutil.rmtree(retired, ignore_errors=True)
                os.replace(path, retired)
            os.replace(beside, path)
        except BaseException:
            if retired.exists() and not path.exists():
                os.replace(retired, path)
            raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as beside:
        # A file name that is not UTF-8 comes as half a character; written out, it is also what JSON makes of it.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _fsync(path: Path) -> None:
    with open(path, "rb+") as written:
        os.fsync(written.fileno())


@contextmanager
def _explain_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LorgnetteError(
            f"cannot write: {error.strerror or error}",
            where=str(path),
            hint="free some space or choose another folder; what stood there before is untouched",
        ) from error
