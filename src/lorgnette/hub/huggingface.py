"""Hugging Face through its own client: a repository's files, and a model's snapshot.

Honours what the client honours: HF_ENDPOINT, HF_TOKEN and the saved login, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE.
The client is imported only when it is asked for something.
"""

import importlib
import os
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from lorgnette.hub import trouble
from lorgnette.hub.repository import Kind, Listed, Repository, checked
from lorgnette.hub.trouble import PassingError, SourceError


def endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def headers() -> dict[str, str]:
    """The token, where there is one."""
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def files(name: str, kind: Kind, revision: str | None = None) -> Repository:
    """Every file, at the commit that `revision` (or main) names now."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api, where = HfApi(endpoint=endpoint()), f"hf:{checked(name, 'hf')}"
    with explained(where):
        info = api.repo_info(name, repo_type=kind, revision=revision, timeout=30)
        commit = str(info.sha or revision or "main")
        entries = list(api.list_repo_tree(name, repo_type=kind, revision=commit, recursive=True))
    prefix = "datasets/" if kind == "dataset" else ""
    listed = []
    for entry in entries:
        if isinstance(entry, RepoFile):
            url = f"{api.endpoint}/{prefix}{name}/resolve/{commit}/{urllib.parse.quote(entry.path)}"
            listed.append(Listed(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, url))
    card: Any = getattr(info, "card_data", None)
    return Repository("hf", name, commit, tuple(listed), headers(), card.to_dict() if card else {})


def snapshot(name: str, revision: str | None) -> Path | None:
    """Where the client's cache has a model, if it has its config."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def blobs(name: str) -> Path:
    """Where the client's cache keeps the content of a model's files, each under its hash."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"


def download(name: str, revision: str, paths: Sequence[str]) -> Path:
    """These files of a model in the client's cache; what is there is not fetched."""
    from huggingface_hub import snapshot_download

    bars = importlib.import_module("huggingface_hub.utils")
    loud = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        with explained(f"hf:{name}"):
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(paths), endpoint=endpoint()))
    finally:
        if loud:
            bars.enable_progress_bars()


@contextmanager
def explained(where: str) -> Iterator[None]:
    """What the client raises, in the sentences of `trouble`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise SourceError(
            "HF_HUB_OFFLINE forbids to ask the hub", where=where, remedy="unset HF_HUB_OFFLINE"
        ) from error
    except errors.GatedRepoError as error:
        raise SourceError(
            "no rights to read this (403): its terms must be accepted",
            where=where,
            remedy="accept them on its page, then set HF_TOKEN or run `hf auth login`",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"there is no such repository, or it is private ({_status(error)})",
            where=where,
            remedy="check the name; for a private one set HF_TOKEN or run `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            "there is no such revision", where=where, remedy="take main, or one of its branches"
        ) from error
    except errors.HFValidationError as error:
        raise SourceError("this is no repository's name", where=where, remedy="write OWNER/NAME") from error
    except errors.HfHubHTTPError as error:
        told = trouble.of_status(error.response, where)
        raise _at(told, where) from error
    except httpx2.HTTPError as error:
        raise _at(trouble.of_transport(error, endpoint()), where) from error
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, httpx2.HTTPError):
            raise _at(trouble.of_transport(cause, endpoint()), where) from error
        raise SourceError(
            "it is not in the cache, and the hub cannot be asked", where=where, remedy="check the network"
        ) from error


def _at(error: SourceError, where: str) -> SourceError:
    kind = PassingError if isinstance(error, PassingError) else SourceError
    return kind(error.what, where=where, remedy=error.remedy)


def _status(error: Any) -> str:
    return str(getattr(getattr(error, "response", None), "status_code", "404"))
