"""ModelScope over its REST routes: a repository's files. Its client is not needed, and no script is ever executed.

Honors MODELSCOPE_ENDPOINT, MODELSCOPE_CACHE, MODELSCOPE_API_TOKEN, and the login that its client saved.
"""

import io
import os
import pickle
import urllib.parse
from pathlib import Path
from typing import Any

from lorgnette.errors import SourceError
from lorgnette.hub.http import HttpClient
from lorgnette.hub.repository import Kind, Repository, RepositoryFile, validate_name

ENDPOINT = "https://modelscope.cn"
PAGE_SIZE, MAX_PAGES = 200, 500


def get_endpoint() -> str:
    url = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or ENDPOINT
    return (url if url.lower().startswith(("http://", "https://")) else f"https://{url}").rstrip("/")


def get_headers() -> dict[str, str]:
    """The token in both headers that its client sends; empty if there is none."""
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    token = _load_saved_token() if token is None else token
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}


def get_cache_root() -> Path:
    """The folder of its client's cache; it need not exist."""
    return Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope").expanduser()


def get_cache_folder(kind: Kind, name: str, revision: str) -> Path:
    """The folder of a repository in its client's cache: the one used up to 1.37 if it exists, else today's."""
    base = get_cache_root()
    owner, _, rest = name.partition("/")
    for parent in (base / f"{kind}s", base / "hub" / f"{kind}s"):
        if (folder := parent / owner / rest.replace(".", "___")).is_dir() and any(folder.iterdir()):
            return folder
    return base / f"{kind}s" / name.replace("/", "--") / "snapshots" / revision


def list_files(client: HttpClient, kind: Kind, name: str, revision: str = "master") -> Repository:
    """Every file of a model or data set, with size and sha256."""
    top = f"{get_endpoint()}/api/v1/{kind}s/{validate_name(name, 'modelscope')}/repo"
    headers = get_headers()
    query = {"Revision": revision, "Recursive": "True"}
    if kind == "model":
        entries = _list_entries(client, f"{top}/files?{urllib.parse.urlencode(query)}", headers, name)
    else:
        entries = _list_pages(client, top, query, headers, name)
    files = []
    for entry in entries:
        if entry.get("Type") != "tree" and isinstance(path := entry.get("Path"), str):
            url = f"{top}?{urllib.parse.urlencode({'Revision': revision, 'FilePath': path})}"
            files.append(RepositoryFile(path, int(entry.get("Size") or 0), entry.get("Sha256") or None, url))
    return Repository("modelscope", name, revision, tuple(files), headers)


def _list_pages(
    client: HttpClient, top: str, query: dict[str, str], headers: dict[str, str], name: str
) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = []
    for number in range(1, MAX_PAGES + 1):
        page = urllib.parse.urlencode({**query, "PageNumber": number, "PageSize": PAGE_SIZE})
        entries = _list_entries(client, f"{top}/tree?{page}", headers, name)
        files += entries
        if len(entries) < PAGE_SIZE:
            return files
    message, hint = f"more than {PAGE_SIZE * MAX_PAGES:,} files", "download it with ModelScope's client"
    raise SourceError(message, where=f"modelscope:{name}", hint=hint)


def _list_entries(client: HttpClient, url: str, headers: dict[str, str], name: str) -> list[dict[str, Any]]:
    """One page of the listing; ModelScope reports some failures with status 200."""
    response = client.get_json(url, headers)
    data = response.get("Data") if isinstance(response, dict) else None
    if not isinstance(data, dict | list) or response.get("Success") is False:
        message = response.get("Message") if isinstance(response, dict) else None
        message = f"ModelScope says: {' '.join(str(message or 'nothing readable').split())[:200]}"
        raise SourceError(message, where=f"modelscope:{name}", hint="check the name and MODELSCOPE_API_TOKEN")
    entries = data if isinstance(data, list) else data.get("Files") or []
    return [entry for entry in entries if isinstance(entry, dict)]


class _InertObject:
    """Replaces every class in the saved login, so that reading it runs no code."""


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return _InertObject


def _load_saved_token() -> str | None:
    """The session that ModelScope's client saved in a pickled cookie jar; only plain values are read."""
    home = Path(os.environ.get("MODELSCOPE_HOME") or Path.home() / ".modelscope").expanduser()
    try:
        jar = _SafeUnpickler(io.BytesIO((home / "credentials" / "cookies").read_bytes())).load()
        for domain in vars(jar)["_cookies"].values():
            for path in domain.values():
                if "m_session_id" in path:
                    return str(vars(path["m_session_id"])["value"])
    except Exception:  # no login, or one in an unknown format
        return None
    return None
