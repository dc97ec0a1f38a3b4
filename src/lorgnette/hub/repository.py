"""A model or data set on a hub, as a list of files with their addresses.

Knows nothing about the hubs' ways to list them, or about what is in the files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorgnette.errors import LorgnetteError
from lorgnette.hub.download import DownloadTask

Kind = Literal["model", "dataset"]
HUB_TITLES = {"hf": "Hugging Face", "modelscope": "ModelScope"}
_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """A file of a repository. size and sha256: as the hub lists them, if it does. A folder has no URL.

    is_external: it is on another host, which does not get the token.
    """

    path: str
    size: int | None
    sha256: str | None
    url: str
    is_external: bool = False

    @property
    def is_folder(self) -> bool:
        return not self.url


@dataclass(frozen=True, slots=True)
class Repository:
    """revision: a commit if the hub names commits. headers carry the token. card: the metadata in its README."""

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
        """The files with one of these suffixes."""
        return [file for file in self.files if file.path.lower().endswith(tuple(suffixes))]

    def list_folder(self, folder: str) -> list[RepositoryFile]:
        """The files directly in a folder ("" or "x/"), without hidden ones."""
        names = [(file, file.path.removeprefix(folder)) for file in self.files if file.path.startswith(folder)]
        return [file for file, name in names if "/" not in name and not name.startswith(".")]

    def find_file(self, path: str) -> RepositoryFile | None:
        return next((file for file in self.files if file.path == path), None)

    def build_task(self, file: RepositoryFile, folder: Path) -> DownloadTask:
        """A task that downloads the file into `folder`, under its own path."""
        if not is_safe_path(file.path):
            message = f"a path in the repository leaves its folder: {file.path!r}"
            raise LorgnetteError(message, where=self.where, hint="report it there")
        return DownloadTask(file.url, folder / file.path, file.size, file.sha256, self.get_headers(file))

    def get_headers(self, file: RepositoryFile) -> Mapping[str, str]:
        """The headers of a request for the file."""
        return {} if file.is_external else self.headers


def is_safe_path(path: str) -> bool:
    """Whether a relative path from another source stays in its folder."""
    parts = path.replace("\\", "/").split("/")
    return bool(path) and ".." not in parts and parts[0] != "" and ":" not in parts[0] and "\0" not in path


def validate_name(name: str, hub: str) -> str:
    """The name. Raises LorgnetteError if no repository can have it, before any request."""
    if not _NAME.fullmatch(name) or ".." in name:
        message = f"{name!r} is not the name of a repository"
        raise LorgnetteError(message, where=HUB_TITLES[hub], hint="write OWNER/NAME, as on its page")
    return name
