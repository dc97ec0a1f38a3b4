"""`cache`: what lorgnette keeps on disk beside runs, and its removal. Imports no torch.

Four kinds: image features, which are computed again when needed; downloads, which are fetched again; Python's bytecode,
which is compiled again; and folders of hubs that other programs use too, which are listed only. Nothing that a process
uses is removed, and nothing that lorgnette has not written itself.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
from rich.console import Console

from lorgnette.data.downloaded_folders import (
    find_last_use,
    find_other_file,
    is_download,
    lock_download,
    remove_download,
)
from lorgnette.features import cache_folder
from lorgnette.hub import modelscope
from lorgnette.io.atomic import remove_folder
from lorgnette.io.shell import format_command
from lorgnette.report.console import Terminal
from lorgnette.resolve import DATA_FOLDER
from lorgnette.startup import get_bytecode_folder

CacheKind = Literal["features", "downloads", "bytecode", "shared"]
ClearedKind = Literal["features", "downloads", "bytecode", "all"]
PURPOSES: dict[CacheKind, str] = {
    "features": "image features; computed again when they are needed",
    "downloads": "data sets from hubs and unfinished downloads of models; fetched again when they are needed",
    "bytecode": "compiled Python code of installed packages; compiled again when it is needed",
    "shared": "models from hubs; other programs use these folders too, so `cache clear` leaves them alone",
}
_SECONDS_PER_DAY = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class CacheItem:
    """A part of what is kept.

    num_entries, unit: what it holds. last_use: seconds since 1970; None if unknown. hint: why it stays, or how to
    remove it; empty if `clear_cache` removes it.
    """

    kind: CacheKind
    path: Path
    size: int
    num_entries: int
    unit: str
    last_use: float | None
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; last_use in ISO 8601, UTC."""
        last_use = None if self.last_use is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.last_use))
        return {**asdict(self), "path": str(self.path), "last_use": last_use}


def show_cache(*, console: Console | None = None) -> list[CacheItem]:
    """Print what is kept: features, data sets below ./data, unfinished downloads, and the hubs' own caches."""
    terminal, items = Terminal(console), list_cache()
    for kind, purpose in PURPOSES.items():
        rows = [item for item in items if item.kind == kind]
        size = format_size(sum(item.size for item in rows)) if rows else "nothing"
        terminal.print_result(f"{kind:<10} {size:>9}   {purpose}")
        for item in rows:
            terminal.print_result(_format_item(item))
    terminal.print(f"to free space: {format_command('cache', 'clear', 'features')} (or downloads, bytecode, all)")
    return items


def clear_cache(
    what: ClearedKind, *, older_than: float | None = None, yes: bool = False, console: Console | None = None
) -> list[CacheItem]:
    """Delete what is kept, and return it. Without `yes` nothing is deleted, but listed.

    older_than: only what was not used for this number of days. Files that a process has open are not deleted.
    """
    terminal = Terminal(console)
    removed, kept = [], []
    for item in list_cache():
        if item.kind != what and (what != "all" or item.kind == "shared"):
            continue
        is_old = older_than is None or time.time() - (item.last_use or 0) >= older_than * _SECONDS_PER_DAY
        if not item.hint and is_old and (not yes or _remove(item)):
            removed.append(item)
        elif is_old:
            kept.append(item)
    for item in removed:
        terminal.print_result(_format_item(item))
    for item in kept:
        terminal.warn(f"{item.path} stays: {item.hint or 'a process uses it'}")
    size = format_size(sum(item.size for item in removed))
    if yes:
        terminal.print_result(f"{size} freed")
    elif removed:
        days = [] if older_than is None else ["--older-than", f"{older_than:g}"]
        command = format_command("cache", "clear", what, *days, "--yes")
        terminal.print_result(f"{size} can be freed; to delete: {command}")
    else:
        terminal.print_result("nothing to delete")
    return removed


def list_cache() -> list[CacheItem]:
    """All items, largest first within their kind."""
    items = [*_list_features(), *_list_data_sets(), *_list_parts(), *_list_bytecode(), *_list_hub_caches()]
    kinds = list(PURPOSES)
    return sorted(items, key=lambda item: (kinds.index(item.kind), -item.size))


def format_size(num_bytes: int) -> str:
    """In GB, MB or kB of 1000, as disks are sold."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1000:.1f} kB"


def _format_item(item: CacheItem) -> str:
    entries = f"{item.num_entries:,} {item.unit}"
    date = "unknown" if item.last_use is None else time.strftime("%Y-%m-%d", time.localtime(item.last_use))
    hint = f"  ({item.hint})" if item.hint else ""
    return f"  {format_size(item.size):>9} {entries:>16}   last use {date}   {item.path}{hint}"


def _list_features() -> Iterator[CacheItem]:
    root = cache_folder.get_features_folder()
    for folder in cache_folder.list_sets(root):
        hint = "a process uses it" if cache_folder.is_in_use(folder) else ""
        size, count = cache_folder.measure_set(folder), cache_folder.count_images(folder)
        yield CacheItem("features", folder, size, count, "images", cache_folder.find_last_use(folder), hint)


def _list_data_sets() -> Iterator[CacheItem]:
    """The data sets in ./data, where `train data=hf:…` puts them, and ./data itself, where `prepare` puts one."""
    children = sorted(DATA_FOLDER.iterdir()) if DATA_FOLDER.is_dir() else []
    for folder in (DATA_FOLDER, *children):
        if not is_download(folder):
            continue
        path = folder.absolute()
        with lock_download(folder) as is_locked:
            hint = "" if is_locked else "a process uses it, or it cannot be locked"
        if folder.is_symlink():
            hint = "a symbolic link: clear what it points to where it is"
        elif other := find_other_file(folder):
            hint = f"it holds files that were not downloaded, such as {other.name}"
        size, count = _measure(folder, lambda name: not name.startswith("."))
        yield CacheItem("downloads", path, size, count, "files", find_last_use(folder), hint)


def _list_parts() -> Iterator[CacheItem]:
    """What killed downloads of models left, in folders of hubs: only the names that `hub/download.py` gives."""
    hf_folders = _get_hf_folder().glob("models--*/blobs")
    others = (modelscope.get_cache_root().glob(f"{prefix}models/*/*") for prefix in ("", "hub/"))
    snapshots = modelscope.get_cache_root().glob("models/*/snapshots/*")
    for folders in (hf_folders, *others, snapshots):
        for folder in sorted(folders):
            parts = _list_part_files(folder)
            if not folder.is_symlink() and parts:
                stats = [part.lstat() for part in parts]
                size, last_use = sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats)
                count = sum(part.suffix == ".part" for part in parts)
                yield CacheItem("downloads", folder, size, count, "unfinished", last_use, _explain_lock(folder))


def _list_bytecode() -> Iterator[CacheItem]:
    """What `startup.keep_bytecode` lets Python write."""
    folder = get_bytecode_folder()
    if folder.is_dir() and not folder.is_symlink():
        size, count = _measure(folder)
        last_use = max((path.lstat().st_mtime for path in folder.rglob("*.pyc")), default=folder.stat().st_mtime)
        yield CacheItem("bytecode", folder, size, count, "files", last_use)


def _list_hub_caches() -> Iterator[CacheItem]:
    hints = (
        (_get_hf_folder(), ("models--*", "datasets--*"), "to clear: hf cache ls, hf cache rm"),
        (modelscope.get_cache_root(), ("models/*", "datasets/*", "hub/models/*/*"), "to clear: modelscope clear-cache"),
    )
    for folder, patterns, hint in hints:
        if folder.is_dir():
            size, _ = _measure(folder)
            if repositories := [path for pattern in patterns for path in folder.glob(pattern)]:
                last_use = max(path.stat().st_mtime for path in repositories)
                yield CacheItem("shared", folder, size, len(repositories), "repositories", last_use, hint)


def _remove(item: CacheItem) -> bool:
    """Delete an item, unless a process uses it by now."""
    if item.kind == "features":
        return cache_folder.remove_set(item.path.parent, item.path) is not None
    if item.kind == "bytecode":
        remove_folder(item.path)  # a process that uses it has read it, or compiles
        return True
    if item.unit == "unfinished":
        return _remove_parts(item.path)
    with lock_download(item.path) as is_locked:
        if is_locked and find_other_file(item.path) is None:
            remove_download(item.path)
            return True
    return False


def _remove_parts(folder: Path) -> bool:
    try:
        with filelock.FileLock(folder / ".lorgnette.lock", timeout=0):
            for path in _list_part_files(folder):
                path.unlink(missing_ok=True)
    except filelock.Timeout:
        return False
    return True


def _explain_lock(folder: Path) -> str:
    try:
        with filelock.FileLock(folder / ".lorgnette.lock", timeout=0):
            return ""
    except filelock.Timeout:
        return "a process downloads it"


def _list_part_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob(".*.part"), *folder.glob(".*.part.tag")])


def _measure(folder: Path, counts: Callable[[str], bool] = lambda name: True) -> tuple[int, int]:
    """(bytes of all files, number of those whose name counts); symbolic links are not followed."""
    size = count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another process has just removed it
                size += os.lstat(os.path.join(parent, name)).st_size
                count += counts(name)
    return size, count


def _get_hf_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
