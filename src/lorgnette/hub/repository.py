"""A model or data set on a hub, as a list of files with their addresses.

Knows nothing about the hubs' ways to list them, or about what is in the files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorgnette.errors import LorgnetteError
from lorgnette.hub.fetch import DownloadTask

Kind = Literal["model", "dataset"]
HUB_TITLES = {"hf": "Hugging Face", "modelscope": "ModelScope"}
_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """A file of a repository. size and sha256 where the hub says them. outside: it lies on a host of its own, which
    is not told the token."""

    path: str
    size: int | None
    sha256: str | None
    url: str
    is_external: bool = False


@dataclass(frozen=True, slots=True)
class Repository:
    """revision is pinned where the hub names commits. headers carry the token. card: what its README declares."""

    hub: str
    name: str
    revision: str
    files: tuple[RepositoryFile, ...]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.hub}:{self.name}"

    def find_by_suffix(self, suffixes: Sequence[str]) -> list[RepositoryFile]:
        """The files with one of these endings."""
        return [file for file in self.files if file.path.lower().endswith(tuple(suffixes))]

    def find_file(self, path: str) -> RepositoryFile | None:
        return next((file for file in self.files if file.path == path), None)

    def build_task(self, file: RepositoryFile, folder: Path) -> DownloadTask:
        """The file as something to download into `folder`, under its own path."""
        if not is_safe_path(file.path):
            raise LorgnetteError(
                f"a path in the repository leaves its folder: {file.path!r}", where=self.where, hint="report it there"
            )
        return DownloadTask(file.url, folder / file.path, file.size, file.sha256, self.get_headers(file))

    def get_headers(self, file: RepositoryFile) -> Mapping[str, str]:
        """The headers to ask for a file with."""
        return {} if file.is_external else self.headers


def is_safe_path(path: str) -> bool:
    """Does a path from elsewhere stay in the folder it is written to?"""
    parts = path.replace("\\", "/").split("/")
    return bool(path) and ".." not in parts and parts[0] != "" and ":" not in parts[0] and "\0" not in path


def validate_name(name: str, hub: str) -> str:
    """A repository's name, or an error before anybody is asked."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise LorgnetteError(
            f"{name!r} is no repository's name", where=HUB_TITLES[hub], hint="write OWNER/NAME, as on its page"
        )
    return name
