"""ModelScope over its REST routes: a repository's files. Its client is not needed, and no script is ever executed.

Honours MODELSCOPE_ENDPOINT, MODELSCOPE_CACHE, MODELSCOPE_API_TOKEN, and the login that its client saved.
"""

import io
import os
import pickle
import urllib.parse
from pathlib import Path
from typing import Any

from lorgnette.hub.line import HttpClient
from lorgnette.hub.repository import Kind, Repository, RepositoryFile, validate_name
from lorgnette.hub.trouble import SourceError

ENDPOINT = "https://modelscope.cn"
PAGE_SIZE, MAX_PAGES = 200, 500


def get_endpoint() -> str:
    given = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or ENDPOINT
    return (given if given.lower().startswith(("http://", "https://")) else f"https://{given}").rstrip("/")


def get_headers() -> dict[str, str]:
    """The token, sent in both ways its client sends it; nothing where there is none."""
    given = os.environ.get("MODELSCOPE_API_TOKEN")
    token = _load_saved_token() if given is None else given
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}


def get_cache_folder(kind: Kind, name: str, revision: str) -> Path:
    """Where its client keeps a repository: the folder it used up to 1.37 if that exists, else today's."""
    base = Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope").expanduser()
    owner, _, rest = name.partition("/")
    for older in (base / f"{kind}s", base / "hub" / f"{kind}s"):
        if (folder := older / owner / rest.replace(".", "___")).is_dir() and any(folder.iterdir()):
            return folder
    return base / f"{kind}s" / name.replace("/", "--") / "snapshots" / revision


def list_files(client: HttpClient, kind: Kind, name: str, revision: str = "master") -> Repository:
    """Every file of a model or data set, with size and sha256."""
    top = f"{get_endpoint()}/api/v1/{kind}s/{validate_name(name, 'modelscope')}/repo"
    sent = get_headers()
    query = {"Revision": revision, "Recursive": "True"}
    if kind == "model":
        entries = _list_entries(client, f"{top}/files?{urllib.parse.urlencode(query)}", sent, name)
    else:
        entries = _list_pages(client, top, query, sent, name)
    listed = []
    for entry in entries:
        if entry.get("Type") != "tree" and isinstance(path := entry.get("Path"), str):
            url = f"{top}?{urllib.parse.urlencode({'Revision': revision, 'FilePath': path})}"
            listed.append(RepositoryFile(path, int(entry.get("Size") or 0), entry.get("Sha256") or None, url))
    return Repository("modelscope", name, revision, tuple(listed), sent)


def _list_pages(
    line: HttpClient, top: str, query: dict[str, str], sent: dict[str, str], name: str
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number in range(1, MAX_PAGES + 1):
        page = urllib.parse.urlencode({**query, "PageNumber": number, "PageSize": PAGE_SIZE})
        entries = _list_entries(line, f"{top}/tree?{page}", sent, name)
        found += entries
        if len(entries) < PAGE_SIZE:
            return found
    raise SourceError(
        f"more than {PAGE_SIZE * MAX_PAGES:,} files",
        where=f"modelscope:{name}",
        hint="download it with ModelScope's client",
    )


def _list_entries(line: HttpClient, url: str, sent: dict[str, str], name: str) -> list[dict[str, Any]]:
    """One answer of the listing; ModelScope reports some failures inside a 200."""
    answer = line.get_json(url, sent)
    data = answer.get("Data") if isinstance(answer, dict) else None
    if not isinstance(data, dict | list) or answer.get("Success") is False:
        message = answer.get("Message") if isinstance(answer, dict) else None
        raise SourceError(
            f"ModelScope says: {' '.join(str(message or 'nothing that can be read').split())[:200]}",
            where=f"modelscope:{name}",
            hint="check the name and MODELSCOPE_API_TOKEN",
        )
    entries = data if isinstance(data, list) else data.get("Files") or []
    return [entry for entry in entries if isinstance(entry, dict)]


class _InertObject:
    """Stands for every class in the saved login, so that reading it can run nothing."""


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return _InertObject


def _load_saved_token() -> str | None:
    """The session that ModelScope's client saved: a pickled cookie jar, of which only plain values are read."""
    home = Path(os.environ.get("MODELSCOPE_HOME") or Path.home() / ".modelscope").expanduser()
    try:
        jar = _SafeUnpickler(io.BytesIO((home / "credentials" / "cookies").read_bytes())).load()
        for domain in vars(jar)["_cookies"].values():
            for path in domain.values():
                if "m_session_id" in path:
                    return str(vars(path["m_session_id"])["value"])
    except Exception:  # no login, or one in a form that is not known here
        return None
    return None
