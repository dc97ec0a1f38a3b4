"""Hugging Face through its own client: a repository's files, and a model's snapshot.

Honors what the client honors: HF_ENDPOINT, HF_TOKEN and the saved login, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE.
The client is imported when it is first needed.
"""

import importlib
import os
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from lorgnette.errors import SourceError
from lorgnette.hub import http
from lorgnette.hub.http import HttpClient
from lorgnette.hub.repository import Kind, Repository, RepositoryFile, validate_name


def get_endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def get_headers() -> dict[str, str]:
    """The token, if there is one."""
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def list_files(client: HttpClient, name: str, kind: Kind, revision: str | None = None) -> Repository:
    """Every file, at the commit that `revision` (or main) names now."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api, where = HfApi(endpoint=get_endpoint()), f"hf:{validate_name(name, 'hf')}"

    def request() -> tuple[Any, list[Any]]:
        with explain_errors(where):
            info = api.repo_info(name, repo_type=kind, revision=revision, timeout=30)
            return info, list(api.list_repo_tree(name, repo_type=kind, revision=info.sha or revision, recursive=True))

    info, entries = client.with_retries(get_endpoint(), request)
    commit = str(info.sha or revision or "main")
    prefix = "datasets/" if kind == "dataset" else ""
    files = []
    for entry in entries:
        if isinstance(entry, RepoFile):
            url = f"{api.endpoint}/{prefix}{name}/resolve/{commit}/{urllib.parse.quote(entry.path)}"
            files.append(RepositoryFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, url))
    card: Any = getattr(info, "card_data", None)
    return Repository("hf", name, commit, tuple(files), get_headers(), card.to_dict() if card else {})


def find_snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a model in the client's cache; None if its config is not there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def get_blobs_folder(name: str) -> Path:
    """The folder of the client's cache with the contents of a model's files, each named by its hash."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"


def download_snapshot(client: HttpClient, name: str, revision: str, paths: Sequence[str]) -> Path:
    """The folder with these files of a model in the client's cache; fetches those that are missing."""
    from huggingface_hub import snapshot_download

    bars = importlib.import_module("huggingface_hub.utils")
    was_enabled = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()

    def request() -> Path:
        with explain_errors(f"hf:{name}"):
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(paths), endpoint=get_endpoint()))

    try:
        return client.with_retries(get_endpoint(), request)
    finally:
        if was_enabled:
            bars.enable_progress_bars()


@contextmanager
def explain_errors(where: str) -> Iterator[None]:
    """Turn what the client raises into a LorgnetteError."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.LocalEntryNotFoundError as error:  # raised for most failures of a snapshot
        raise _explain_error(error.__cause__, where) or SourceError(
            "it is not in the cache, and the hub cannot be reached", where=where, hint="check the network"
        ) from error
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled, errors.HFValidationError) as error:
        raise _explain_error(error, where) or error from error
    except OSError as error:
        raise http.explain_disk_error(error, Path(constants.HF_HUB_CACHE)) from error


def _explain_error(error: BaseException | None, where: str) -> SourceError | None:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", "404")
    known = {
        errors.OfflineModeIsEnabled: ("HF_HUB_OFFLINE forbids requests to the hub", "unset HF_HUB_OFFLINE"),
        errors.GatedRepoError: (
            "no permission to read this (HTTP 403): its terms must be accepted",
            "accept them on its page, then set HF_TOKEN or run `hf auth login`",
        ),
        errors.RepositoryNotFoundError: (
            f"there is no such repository, or it is private (HTTP {status})",
            "check the name; for a private one set HF_TOKEN or run `hf auth login`",
        ),
        errors.RevisionNotFoundError: ("there is no such revision", "use main, or one of its branches"),
        errors.HFValidationError: ("not the name of a repository", "write OWNER/NAME"),
    }
    for kind, (message, hint) in known.items():
        if isinstance(error, kind):
            return SourceError(message, where=where, hint=hint)
    if isinstance(error, errors.HfHubHTTPError):
        return http.explain_status(error.response, where)
    if isinstance(error, httpx2.HTTPError):
        return http.explain_transport_error(error, get_endpoint(), where=where)
    return None
