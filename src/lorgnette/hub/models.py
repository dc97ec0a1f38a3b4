"""A model's name → its folder, in a hub's own cache or in a given folder.

Only what a model needs is fetched, small files first, so that a folder with weights is complete. The weights of both
hubs come through `download`, which resumes after a kill (Hugging Face's client begins again).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import filelock

from lorgnette.errors import LorgnetteError, SourceError
from lorgnette.hub import huggingface, modelscope
from lorgnette.hub.download import DownloadTask, OnProgress, download_all, ignore_progress
from lorgnette.hub.http import HttpClient, RetryPolicy, explain_disk_error
from lorgnette.hub.repository import HUB_TITLES, Repository, RepositoryFile, validate_name
from lorgnette.io.parse import read_config

HubChoice = Literal["auto", "hf", "modelscope"]
_WEIGHT_FILE = re.compile(r"model(\.safetensors)?(-\d+-of-\d+)?\.safetensors")
"""`model-00001-of-00002.safetensors`, and Qwen3.5's `model.safetensors-00001-of-00002.safetensors`."""
_SMALL_FILES = frozenset({
    "config.json", "generation_config.json", "model.safetensors.index.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja", "README.md",
})  # fmt: skip


def fetch_model(
    name: str,
    *,
    source: HubChoice = "auto",
    folder: Path | None = None,
    revision: str | None = None,
    on_progress: OnProgress = ignore_progress,
    on_message: Callable[[str], None] = lambda text: None,
    check_config: Callable[[Path], object] = lambda folder: None,
    needs_weights: bool = True,
    retry_policy: RetryPolicy | None = None,
) -> Path:
    """The folder of a model, from a cache or else from a hub.

    source "auto": `name` itself if it is a folder, else the hub whose cache has the model or a part of it, then Hugging
    Face, then ModelScope. folder: where to put it instead of the hub's cache. check_config: is called with a folder
    that has config.json before any weights are fetched, and raises an error for a model that cannot be used.
    needs_weights: otherwise only the small files are fetched. Raises LorgnetteError if no hub gives it.
    """
    if source == "auto" and (local := Path(name).expanduser()).is_dir():
        return local
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise LorgnetteError("no such model folder", where=name, hint="give a folder, or OWNER/NAME as on a hub")
    if folder is not None and is_complete_model(folder, needs_weights=needs_weights):
        return folder
    cached = find_in_cache(name, source=source, revision=revision, needs_weights=needs_weights)
    if folder is None and cached:
        on_message(f"{name}: from {HUB_TITLES[cached[0]]}'s cache, {cached[1]}")
        return cached[1]
    hubs = _select_hubs(source)
    if source == "auto" and huggingface.is_offline():
        raise LorgnetteError("it is in no cache, and HF_HUB_OFFLINE is set", where=name, hint="unset HF_HUB_OFFLINE")
    # A hub that an earlier start has begun with comes first.
    hubs.sort(key=lambda hub: not any(_get_download_folder(hub, name, revision).glob("*")))
    with HttpClient(retry_policy=retry_policy) as client:
        repository = _list_from_first_hub(hubs, name, revision, client, on_message)
        destination = folder or _get_download_folder(repository.hub, name, revision)
        with _lock_folder(destination, on_message):
            on_message(f"{name}: from {HUB_TITLES[repository.hub]}")
            return _download_model(repository, revision, folder, client, on_progress, check_config, needs_weights)


def find_in_cache(
    name: str, *, source: HubChoice = "auto", revision: str | None = None, needs_weights: bool = True
) -> tuple[str, Path] | None:
    """(hub, folder) of a complete model in a hub's cache, or of its small files. Sends no request."""
    for hub in _select_hubs(source):
        is_hf = validate_name(name, hub) and hub == "hf"
        folder = huggingface.find_snapshot(name, revision) if is_hf else _get_download_folder(hub, name, revision)
        if folder is not None and is_complete_model(folder, needs_weights=needs_weights):
            return hub, folder
    return None


def _select_hubs(source: HubChoice) -> list[str]:
    return ["hf", "modelscope"] if source == "auto" else [source]


@contextmanager
def _lock_folder(folder: Path, on_message: Callable[[str], None]) -> Iterator[None]:
    """One process at a time fetches into a folder; a second one waits and then has nothing to fetch."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_disk_error(error, folder) from error
    lock = filelock.FileLock(folder / ".lorgnette.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        on_message(f"waiting for another process that fetches into {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_complete_model(folder: Path, *, needs_weights: bool = True) -> bool:
    """Whether a folder has all of a model: its config, a tokenizer, every shard. needs_weights: otherwise the other
    small files that `plan` reads."""
    has_tokenizer = (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file()
    if not (has_tokenizer and (folder / "config.json").is_file()):
        return False
    if not needs_weights:
        return all((folder / name).is_file() for name in ("preprocessor_config.json", "tokenizer_config.json"))
    if (folder / "model.safetensors").is_file():
        return True
    try:
        index = read_config(folder / "model.safetensors.index.json", "fetch it again")
        shards = set(index["weight_map"].values())
    except (OSError, LorgnetteError, KeyError, TypeError, AttributeError):
        return False
    return bool(shards) and all((folder / shard).is_file() for shard in shards)


def _get_download_folder(hub: str, name: str, revision: str | None) -> Path:
    if hub == "hf":
        return huggingface.get_blobs_folder(name)
    return modelscope.get_cache_folder("model", name, revision or "master")


def _list_from_first_hub(
    hubs: list[str], name: str, revision: str | None, client: HttpClient, on_message: Callable[[str], None]
) -> Repository:
    """The repository on the first hub that has it."""
    errors: dict[str, SourceError] = {}
    for hub in hubs:
        try:
            if hub == "hf":
                repository = huggingface.list_files(client, name, "model", revision)
            else:
                repository = modelscope.list_files(client, "model", name, revision or "master")
        except SourceError as error:
            errors[hub] = error
            continue
        for other, cause in errors.items():
            on_message(f"{name}: not from {HUB_TITLES[other]}: {cause.message}")
        return repository
    first = next(iter(errors.values()))
    if len(errors) == 1:
        raise first
    causes = {error.message for error in errors.values()}
    named = (f"{HUB_TITLES[hub]}: {error.message}" for hub, error in errors.items())
    reasons = first.message if len(causes) == 1 else "; ".join(named)
    raise SourceError(f"neither hub gives it: {reasons}", where=name, hint=first.hint) from first


def _download_model(
    repository: Repository,
    revision: str | None,
    folder: Path | None,
    client: HttpClient,
    on_progress: OnProgress,
    check_config: Callable[[Path], object],
    needs_weights: bool,
) -> Path:
    small, weights = _select_files(repository)
    weights = weights if needs_weights else []
    if repository.hub != "hf" or folder is not None:
        folder = folder or modelscope.get_cache_folder("model", repository.name, repository.revision)
        download_all([repository.build_task(file, folder) for file in small], client, on_progress)
        check_config(folder)
        download_all([repository.build_task(file, folder) for file in weights], client, on_progress)
        return folder
    # Into Hugging Face's cache: files with a hash become blobs there, its client does the rest.
    files = [*small, *weights]
    unhashed = [file.path for file in files if not file.sha256]
    if unhashed:
        snapshot = huggingface.download_snapshot(client, repository.name, repository.revision, unhashed)
        if "config.json" in unhashed:
            check_config(snapshot)
    folder = huggingface.get_blobs_folder(repository.name)
    hashed = {file.sha256: file for file in files if file.sha256}
    tasks = [DownloadTask(f.url, folder / hash_, f.size, hash_, repository.headers) for hash_, f in hashed.items()]
    download_all(tasks, client, on_progress)
    return huggingface.download_snapshot(client, repository.name, revision or "main", [file.path for file in files])


def _select_files(repository: Repository) -> tuple[list[RepositoryFile], list[RepositoryFile]]:
    """(small files, weights). Raises SourceError if it is not a model with safetensors weights."""
    small = [file for file in repository.files if file.path in _SMALL_FILES]
    weights = [file for file in repository.files if _WEIGHT_FILE.fullmatch(file.path)]
    if single := repository.find_file("model.safetensors"):
        weights = [single]
    for files, name in ((repository.find_file("config.json"), "config.json"), (weights, "safetensors weights")):
        if not files:
            raise SourceError(f"not a usable model: it has no {name}", where=repository.where, hint="take another")
    return small, weights
