"""A model by its name → its folder: in a hub's own cache, or where it was asked to be.

Only what a model needs is fetched, small files first, so that a folder with weights in it is a whole one. Both hubs'
weights come over `download`: after a kill they go on where they were (Hugging Face's client would start anew).
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import filelock

from lorgnette.errors import LorgnetteError
from lorgnette.hub import huggingface, modelscope, trouble
from lorgnette.hub.download import OnProgress, download_files, ignore_progress
from lorgnette.hub.fetch import DownloadTask
from lorgnette.hub.line import HttpClient, RetryPolicy
from lorgnette.hub.repository import HUB_TITLES, Repository, RepositoryFile, validate_name
from lorgnette.hub.trouble import SourceError

HubChoice = Literal["auto", "hf", "modelscope"]
_WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SMALL_FILES = frozenset({
    "config.json", "generation_config.json", "model.safetensors.index.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja",
})  # fmt: skip


def fetch_model(
    name: str,
    *,
    source: HubChoice = "auto",
    folder: Path | None = None,
    revision: str | None = None,
    on_progress: OnProgress = ignore_progress,
    on_message: Callable[[str], None] = lambda text: None,
    retry_policy: RetryPolicy | None = None,
) -> Path:
    """The folder of a model: from a cache, else from a hub. auto: `name` itself where that is a folder, else the hub
    that has it in its cache or has begun to, then Hugging Face, then ModelScope."""
    if source == "auto" and (local := Path(name).expanduser()).is_dir():
        return local
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise LorgnetteError("no such model folder", where=name, hint="give a folder, or OWNER/NAME as on a hub")
    if folder is not None and is_complete_model(folder):
        return folder
    if folder is None and (found := find_in_cache(name, source=source, revision=revision)):
        on_message(f"{name}: from {HUB_TITLES[found[0]]}'s cache, {found[1]}")
        return found[1]
    hubs = _select_hubs(source)
    if source == "auto" and huggingface.is_offline():
        raise LorgnetteError("it is in no cache, and HF_HUB_OFFLINE is set", where=name, hint="unset HF_HUB_OFFLINE")
    hubs.sort(key=lambda hub: not _is_started(hub, name, revision))
    with HttpClient(retry_policy=retry_policy) as line:
        repository = _list_from_first_hub(hubs, name, revision, line, on_message)
        destination = folder or _get_download_folder(repository.hub, name, revision)
        with _lock_folder(destination, on_message):
            on_message(f"{name}: from {HUB_TITLES[repository.hub]}")
            return _download_model(repository, revision, folder, line, on_progress)


def find_in_cache(name: str, *, source: HubChoice = "auto", revision: str | None = None) -> tuple[str, Path] | None:
    """The hub in whose cache a whole model lies, and its folder there. Asks no hub."""
    for hub in _select_hubs(source):
        folder = _find_cache_folder(hub, validate_name(name, hub), revision)
        if folder is not None and is_complete_model(folder):
            return hub, folder
    return None


def _select_hubs(source: HubChoice) -> list[str]:
    return ["hf", "modelscope"] if source == "auto" else [source]


@contextmanager
def _lock_folder(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One process at a time fetches into a folder; a second one waits and then finds it all there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise trouble.explain_disk_error(error, folder) from error
    lock = filelock.FileLock(folder / ".lorgnette.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"waiting for another process that fetches into {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_complete_model(folder: Path) -> bool:
    """Does a folder hold all of a model: its config, a tokenizer, every shard?"""
    tokenizer = (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file()
    if not (tokenizer and (folder / "config.json").is_file()):
        return False
    if (folder / "model.safetensors").is_file():
        return True
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        shards = set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(shards) and all((folder / shard).is_file() for shard in shards)


def _find_cache_folder(hub: str, name: str, revision: str | None) -> Path | None:
    if hub == "modelscope":
        return modelscope.get_cache_folder("model", name, revision or "master")
    return huggingface.find_snapshot(name, revision)


def _get_download_folder(hub: str, name: str, revision: str | None) -> Path:
    """Where what is fetched from a hub lies."""
    return (
        huggingface.get_blobs_folder(name)
        if hub == "hf"
        else modelscope.get_cache_folder("model", name, revision or "master")
    )


def _is_started(hub: str, name: str, revision: str | None) -> bool:
    home = _get_download_folder(hub, name, revision)
    return home.is_dir() and any(home.iterdir())


def _list_from_first_hub(
    hubs: list[str], name: str, revision: str | None, line: HttpClient, say: Callable[[str], None]
) -> Repository:
    """The listing of the first hub that gives one."""
    errors: dict[str, SourceError] = {}
    for hub in hubs:
        try:
            if hub == "hf":
                return huggingface.list_files(line, name, "model", revision)
            return modelscope.list_files(line, "model", name, revision or "master")
        except SourceError as error:
            errors[hub] = error
            say(f"{name}: not from {HUB_TITLES[hub]}: {error.message}")
    first = next(iter(errors.values()))
    if len(errors) == 1:
        raise first
    told = "; ".join(f"{HUB_TITLES[hub]}: {error.message}" for hub, error in errors.items())
    raise SourceError(f"neither hub gives it: {told}", where=name, hint=first.hint) from first


def _download_model(
    repository: Repository, revision: str | None, into: Path | None, line: HttpClient, seen: OnProgress
) -> Path:
    small, weights = _select_files(repository)
    if repository.hub == "hf" and into is None:
        return _download_into_cache(repository, revision, [*small, *weights], line, seen)
    folder = into or modelscope.get_cache_folder("model", repository.name, repository.revision)
    for files in (small, weights):
        _download_all([repository.build_task(file, folder) for file in files], line, seen)
    return folder


def _download_into_cache(
    repository: Repository, revision: str | None, files: list[RepositoryFile], line: HttpClient, seen: OnProgress
) -> Path:
    """Hugging Face's cache: what has a hash is put beside its other blobs, the client itself does the rest."""
    plain = [file.path for file in files if not file.sha256]
    if plain:
        huggingface.download_snapshot(line, repository.name, repository.revision, plain)
    folder = huggingface.get_blobs_folder(repository.name)
    hashed = {file.sha256: file for file in files if file.sha256}
    wanted = [
        DownloadTask(file.url, folder / hash_, file.size, hash_, repository.headers)
        for hash_, file in hashed.items()
        if hash_
    ]
    _download_all(wanted, line, seen)
    return huggingface.download_snapshot(line, repository.name, revision or "main", [file.path for file in files])


def _download_all(wanted: list[DownloadTask], line: HttpClient, seen: OnProgress) -> None:
    failed = download_files(wanted, client=line, on_progress=seen).failures
    if failed:
        raise SourceError(failed[0].message, where=failed[0].url, hint=failed[0].hint)


def _select_files(repository: Repository) -> tuple[list[RepositoryFile], list[RepositoryFile]]:
    small = [file for file in repository.files if file.path in _SMALL_FILES]
    weights = [file for file in repository.files if _WEIGHT_FILE.fullmatch(file.path)]
    if single := repository.find_file("model.safetensors"):
        weights = [single]
    for missing, what in ((repository.find_file("config.json"), "config.json"), (weights, "safetensors weights")):
        if not missing:
            raise SourceError(
                f"this is no model that can be used: it has no {what}", where=repository.where, hint="take another"
            )
    return small, weights
