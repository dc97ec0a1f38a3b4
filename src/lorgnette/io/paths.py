"""Checks an output path before the work starts; finds the file that is meant by a path that does not exist."""

import difflib
import html
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryFile
from urllib.parse import unquote

from lorgnette.errors import LorgnetteError, UsageError

_MAX_LISTED = 10_000
"""Entries of a folder that are searched for a similar name."""
_MAX_FOLDERS = 20
"""Folders in a folder that are searched for a file."""


def check_writable(out: Path, *inputs: Path, is_page: bool = False) -> None:
    """Raises UsageError if `out` is a folder or one of the inputs, LorgnetteError if it cannot be written.

    is_page: it is HTML; then a name without .html is an error too: a browser would show its source.
    """
    sources = [source for path in inputs for source in split_sources(path)]
    if out.exists() and any(file.exists() and out.samefile(file) for file in sources):
        raise UsageError("the output would overwrite its own input", where=f"--out {out}", hint="name another file")
    if out.is_dir():
        raise UsageError("a folder, not a file", where=f"--out {out}", hint="name a file in it")
    if out.exists() and not out.is_file():
        raise UsageError("a device, not a file", where=f"--out {out}", hint="name a new file")
    if is_page and out.suffix.lower() not in (".html", ".htm"):
        hint = f"name it {out.with_name(f'{out.name}.html')}"
        raise UsageError("a page without .html, which a browser shows as text", where=f"--out {out}", hint=hint)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        where, hint = f"--out {out}", "choose another folder"
        raise LorgnetteError(f"cannot write: {error.strerror}", where=where, hint=hint) from error


def split_sources(path: Path) -> tuple[Path, ...]:
    """The sources in a list with commas, such as `a.csv,b.csv`. A path that exists is one source, whatever its name."""
    words = str(path).split(",")
    if len(words) == 1:
        return (path,)
    sources: list[Path] = []
    while words:
        ends = (end for end in range(len(words), 0, -1) if os.path.lexists(",".join(words[:end]).strip()))
        end = next(ends, 1)
        name, words = ",".join(words[:end]).strip(), words[end:]
        if name:
            sources.append(Path(name))
    return tuple(sources) or (path,)


def join_sources(sources: Iterable[Path]) -> Path:
    """The list that `split_sources` takes apart."""
    return Path(",".join(map(str, sources)))


def get_base_name(written: str) -> str:
    """The file name at the end of a path as written on any system: `D:\\set\\a.png` and `set/a.png` end in a.png."""
    return PureWindowsPath(written).name


def find_same_name(path: Path) -> Path | None:
    """The existing path that differs from this one only in letter case, Unicode form or escapes (%20, &amp;)."""
    missing: list[str] = []
    folder = path
    try:
        while not os.path.exists(folder):
            missing.append(folder.name)
            folder = folder.parent
        for name in reversed(missing):
            match = _list_by_plain_name(folder, folder.stat().st_mtime_ns).get(_make_plain(name))
            if match is None:
                return None
            folder /= match
    except (OSError, ValueError):  # a file in the place of a folder, a folder that cannot be read, a NUL
        return None
    return folder if missing and os.path.exists(folder) else None  # a link may lead nowhere


def suggest_path(path: Path, otherwise: str) -> str:
    """A hint that names the existing path that `path` probably means; `otherwise` if there is none.

    It has the same name but for letter case, Unicode form and escapes, or the most similar name in the same folder.
    """
    nearest = find_same_name(path)
    if nearest is None:
        try:
            with os.scandir(path.parent) as entries:
                names = [entry.name for entry in islice(entries, _MAX_LISTED)]
        except (OSError, ValueError):
            return otherwise
        similar = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
        nearest = path.with_name(similar[0]) if similar else None
    return otherwise if nearest is None else f"did you mean {nearest}?"


def list_folders(folder: Path) -> Sequence[Path]:
    """The folders in a folder, in order; none of a folder that cannot be read."""
    try:
        return _list_folders(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return ()


@lru_cache(maxsize=16)
def _list_folders(folder: Path, mtime_ns: int) -> Sequence[Path]:
    with os.scandir(folder) as entries:
        folders = [Path(entry.path) for entry in islice(entries, _MAX_LISTED) if entry.is_dir()]
    return sorted(folders)[:_MAX_FOLDERS]


def _make_plain(name: str) -> str:
    """The name without what makes two spellings of one name differ."""
    return unicodedata.normalize("NFC", html.unescape(unquote(name)).casefold())


@lru_cache(maxsize=16)
def _list_by_plain_name(folder: Path, mtime_ns: int) -> Mapping[str, str]:
    """Plain name → a name in the folder. mtime_ns: the folder's time of change, so that a new file is seen."""
    return {_make_plain(name): name for name in sorted(os.listdir(folder))}
