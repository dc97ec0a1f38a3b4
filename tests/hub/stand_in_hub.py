"""Stand-ins for the two hubs and for image hosts, on loopback, that behave as the real ones do.

`hub.put("/x.jpg", bytes)` serves a file: HEAD, ranges, If-Range, ETag. `hub.trick("/x.jpg", Trick(...), ...)` spoils
the next requests for it, one trick each. `hub.log` holds every request; `hub.served` counts the bytes of all bodies.
"""

import hashlib
import http.server
import io
import json
import random
import tarfile
import threading
import time
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

SHA = "5f" * 20


@dataclass
class Trick:
    """What happens to one request instead of a plain response."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    pause: float = 0.0
    body: bytes | None = None


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


def etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub:
    """One server for all: static files, /api/v1 as ModelScope has it, /api and /resolve as Hugging Face has it."""

    def __init__(self) -> None:
        self.static: dict[str, bytes] = {}
        self.repos: dict[tuple[str, str, str], dict[str, bytes]] = {}
        self.cards: dict[str, dict[str, Any]] = {}
        self.tricks: dict[str, list[Trick]] = {}
        self.token: str | None = None
        self.etags = True
        self.ranges = True
        self.log: list[Request] = []
        self.served = 0
        self.lock = threading.Lock()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, path: str, content: bytes) -> str:
        self.static[path] = content
        return self.url + path

    def repo(self, hub: str, kind: str, name: str, files: dict[str, bytes]) -> None:
        self.repos[hub, kind, name] = files

    def trick(self, path: str, *tricks: Trick) -> None:
        self.tricks.setdefault(path, []).extend(tricks)

    def requests(self, path: str = "", method: str = "GET") -> list[Request]:
        return [
            each
            for each in self.log
            if path in each.path + "?" + each.query.get("FilePath", "") and each.method == method
        ]

    def next_trick(self, path: str) -> Trick:
        with self.lock:
            waiting = self.tricks.get(path) or [Trick()]
            return waiting.pop(0)


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(url.path), dict(urllib.parse.parse_qsl(url.query))
        with self.hub.lock:
            self.hub.log.append(Request(self.command, path, query, dict(self.headers)))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        trick = self.hub.next_trick(query.get("FilePath", path))
        time.sleep(trick.pause)
        if trick.status:
            body = trick.body or b""
            return self.send(trick.status, body, {"Content-Type": "text/plain", **trick.headers})
        if path.startswith("/api/v1/"):
            return self.modelscope(path.split("/")[3:], query, trick)
        if path.startswith("/api/"):
            return self.face(path.split("/")[2:], query)
        if "/resolve/" in path:
            return self.resolve(path, trick)
        content = self.hub.static.get(path)
        return self.missing() if content is None else self.file(content, trick)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def modelscope(self, parts: list[str], query: dict[str, str], trick: Trick) -> None:
        kind, name, rest = parts[0], "/".join(parts[1:3]), parts[3:]
        files = self.hub.repos.get(("modelscope", kind, name))
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.json({"Code": 10010205001, "Message": "no permission", "Success": False}, 403)
        if files is None:
            return self.json({"Code": 10010205001, "Message": "not found", "Success": False}, 404)
        if rest in (["repo", "tree"], ["repo", "files"]):
            entries = [
                {"Path": path, "Name": path.rsplit("/", 1)[-1], "Type": "blob", "Size": len(c), "Sha256": etag(c)}
                for path, c in files.items()
            ]
            entries.append({"Path": "a_folder", "Name": "a_folder", "Type": "tree", "Size": 0, "Sha256": ""})
            if "PageNumber" in query:
                size = int(query["PageSize"])
                start = (int(query["PageNumber"]) - 1) * size
                entries = entries[start : start + size]
            return self.json({"Code": 200, "Success": True, "Data": {"Files": entries}})
        content = files.get(query.get("FilePath", ""))
        return self.missing() if rest != ["repo"] or content is None else self.file(content, trick)

    def face(self, parts: list[str], query: dict[str, str]) -> None:
        kind, name, rest = parts[0], "/".join(parts[1:3]), parts[3:]
        files = self.hub.repos.get(("hf", kind, name))
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.json({"error": "gated"}, 401 if files is None else 403, {"X-Error-Code": "GatedRepo"})
        if files is None:
            return self.json({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["revision"] and rest[1] not in ("main", SHA):
            return self.json({"error": "no"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if rest[:1] in ([], ["revision"]):
            siblings = [{"rfilename": path} for path in files]
            card = self.hub.cards.get(name, {})
            info = {"id": name, "sha": SHA, "private": False, "disabled": False, "gated": False, "downloads": 0}
            return self.json({**info, "likes": 0, "tags": [], "siblings": siblings, "cardData": card})
        tree = [{"type": "file", "path": path, "size": len(c), "oid": etag(c)[:40]} for path, c in files.items()]
        for entry, content in zip(tree, files.values(), strict=True):
            if len(content) > 20_000:
                entry["lfs"] = {"oid": etag(content), "size": len(content), "pointerSize": 130}
        return self.json(tree)

    def resolve(self, path: str, trick: Trick) -> None:
        kind = "datasets" if path.startswith("/datasets/") else "models"
        name, _, rest = path.removeprefix("/datasets").lstrip("/").partition("/resolve/")
        files = self.hub.repos.get(("hf", kind, name))
        content = (files or {}).get(rest.partition("/")[2])
        if content is None:
            return self.json({"error": "no"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
        trick.headers.setdefault("X-Repo-Commit", SHA)
        if len(content) > 20_000:
            trick.headers.setdefault("X-Linked-Etag", f'"{etag(content)}"')
            trick.headers.setdefault("X-Linked-Size", str(len(content)))
        return self.file(content, trick)

    def file(self, content: bytes, trick: Trick) -> None:
        headers = {"Content-Type": "application/octet-stream", **trick.headers}
        tag = f'"{etag(content)}"'
        if self.hub.etags:
            headers["ETag"] = tag
        body, status = trick.body if trick.body is not None else content, 200
        range_ = self.headers.get("Range") if self.hub.ranges else None
        if range_ and self.headers.get("If-Range", tag) == tag:
            first, _, last = range_.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) if last else len(body) - 1
            if start >= len(body):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            headers["Content-Range"] = f"bytes {start}-{min(end, len(body) - 1)}/{len(body)}"
            body, status = body[start : end + 1], 206
        self.send(status, body, headers, cut=trick.cut)

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def missing(self) -> None:
        self.send(404, b"nothing here", {})

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = body if cut is None else body[:cut]
        with self.hub.lock:
            self.hub.served += len(body)
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None: ...


def encode_jpeg(seed: int, side: int = 48) -> bytes:
    rng = random.Random(seed)
    out = io.BytesIO()
    PIL.Image.frombytes("RGB", (side, side), rng.randbytes(side * side * 3)).save(out, "JPEG", quality=80)
    return out.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A fresh stand-in; both hubs' variables point at it, both caches into the test's folder."""
    server = Hub()
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    yield server
    server.server.shutdown()
    server.server.server_close()
    thread.join()


@pytest.fixture
def trick() -> type[Trick]:
    return Trick


@pytest.fixture
def jpeg() -> Callable[..., bytes]:
    """jpeg(seed) → the bytes of a small noisy image."""
    return encode_jpeg


@pytest.fixture
def zipped() -> Callable[..., bytes]:
    def make(**members: bytes | str) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return out.getvalue()

    return make


@pytest.fixture
def tarred() -> Callable[[dict[str, bytes]], bytes]:
    def make(members: dict[str, bytes]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return out.getvalue()

    return make
