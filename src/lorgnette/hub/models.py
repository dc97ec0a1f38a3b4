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
from lorgnette.hub.download import Seen, download, unseen
from lorgnette.hub.fetch import Wanted
from lorgnette.hub.line import Line, Patience
from lorgnette.hub.repository import TITLES, Listed, Repository, checked
from lorgnette.hub.trouble import SourceError

Source = Literal["auto", "hf", "modelscope"]
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SMALL = frozenset({
    "config.json", "generation_config.json", "model.safetensors.index.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja",
})  # fmt: skip


def fetch_model(
    name: str,
    *,
    source: Source = "auto",
    into: Path | None = None,
    revision: str | None = None,
    seen: Seen = unseen,
    say: Callable[[str], None] = lambda text: None,
    patience: Patience | None = None,
) -> Path:
    """The folder of a model: from a cache, else from a hub. auto: `name` itself where that is a folder, else the hub
    that has it in its cache or has begun to, then Hugging Face, then ModelScope."""
    if source == "auto" and (folder := Path(name).expanduser()).is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise LorgnetteError("no such model folder", where=name, remedy="give a folder, or OWNER/NAME as on a hub")
    if into is not None and whole(into):
        return into
    hubs: list[str] = ["hf", "modelscope"] if source == "auto" else [source]
    for hub in hubs:
        cached = _cache(hub, checked(name, hub), revision) if into is None else None
        if cached is not None and whole(cached):
            say(f"{name}: from {TITLES[hub]}'s cache, {cached}")
            return cached
    if source == "auto" and huggingface.offline():
        raise LorgnetteError("it is in no cache, and HF_HUB_OFFLINE is set", where=name, remedy="unset HF_HUB_OFFLINE")
    hubs.sort(key=lambda hub: not _begun(hub, name, revision))
    with Line(patience=patience) as line:
        repository = _first(hubs, name, revision, line, say)
        folder = into or _home(repository.hub, name, revision)
        with _alone(folder, say):
            say(f"{name}: from {TITLES[repository.hub]}")
            return _fetch(repository, revision, into, line, seen)


@contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One process at a time fetches into a folder; a second one waits and then finds it all there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise trouble.of_disk(error, folder) from error
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


def whole(folder: Path) -> bool:
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


def _cache(hub: str, name: str, revision: str | None) -> Path | None:
    if hub == "modelscope":
        return modelscope.cache("model", name, revision or "master")
    return huggingface.snapshot(name, revision)


def _home(hub: str, name: str, revision: str | None) -> Path:
    """Where what is fetched from a hub lies."""
    return huggingface.blobs(name) if hub == "hf" else modelscope.cache("model", name, revision or "master")


def _begun(hub: str, name: str, revision: str | None) -> bool:
    home = _home(hub, name, revision)
    return home.is_dir() and any(home.iterdir())


def _first(hubs: list[str], name: str, revision: str | None, line: Line, say: Callable[[str], None]) -> Repository:
    """The listing of the first hub that gives one."""
    errors: dict[str, SourceError] = {}
    for hub in hubs:
        try:
            if hub == "hf":
                return huggingface.files(line, name, "model", revision)
            return modelscope.files(line, "model", name, revision or "master")
        except SourceError as error:
            errors[hub] = error
            say(f"{name}: not from {TITLES[hub]}: {error.what}")
    first = next(iter(errors.values()))
    if len(errors) == 1:
        raise first
    told = "; ".join(f"{TITLES[hub]}: {error.what}" for hub, error in errors.items())
    raise SourceError(f"neither hub gives it: {told}", where=name, remedy=first.remedy) from first


def _fetch(repository: Repository, revision: str | None, into: Path | None, line: Line, seen: Seen) -> Path:
    small, weights = _needed(repository)
    if repository.hub == "hf" and into is None:
        return _into_cache(repository, revision, [*small, *weights], line, seen)
    folder = into or modelscope.cache("model", repository.name, repository.revision)
    for files in (small, weights):
        _have([repository.wanted(file, folder) for file in files], line, seen)
    return folder


def _into_cache(repository: Repository, revision: str | None, files: list[Listed], line: Line, seen: Seen) -> Path:
    """Hugging Face's cache: what has a hash is put beside its other blobs, the client itself does the rest."""
    plain = [file.path for file in files if not file.sha256]
    if plain:
        huggingface.download(line, repository.name, repository.revision, plain)
    folder = huggingface.blobs(repository.name)
    hashed = {file.sha256: file for file in files if file.sha256}
    wanted = [
        Wanted(file.url, folder / hash_, file.size, hash_, repository.headers)
        for hash_, file in hashed.items()
        if hash_
    ]
    _have(wanted, line, seen)
    return huggingface.download(line, repository.name, revision or "main", [file.path for file in files])


def _have(wanted: list[Wanted], line: Line, seen: Seen) -> None:
    failed = download(wanted, line=line, seen=seen).failed
    if failed:
        raise SourceError(failed[0].what, where=failed[0].url, remedy=failed[0].remedy)


def _needed(repository: Repository) -> tuple[list[Listed], list[Listed]]:
    small = [file for file in repository.files if file.path in _SMALL]
    weights = [file for file in repository.files if _WEIGHTS.fullmatch(file.path)]
    if single := repository.at("model.safetensors"):
        weights = [single]
    for missing, what in ((repository.at("config.json"), "config.json"), (weights, "safetensors weights")):
        if not missing:
            raise SourceError(
                f"this is no model that can be used: it has no {what}", where=repository.where, remedy="take another"
            )
    return small, weights
