"""`hf:NAME[@REVISION][:CONFIG][:SPLIT]` or `modelscope:NS/NAME[@REVISION][:SPLIT]` → the data files of one split.

A table is downloaded completely when it is opened; of a parquet file or a tar only the bytes that are read are fetched.
Knows nothing about the contents of the files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.hub import huggingface, modelscope, script, splits
from lorgnette.hub.address import HUBS
from lorgnette.hub.download import OnProgress, download_all, ignore_progress
from lorgnette.hub.http import HttpClient
from lorgnette.hub.remote_file import RemoteFile
from lorgnette.hub.repository import Repository, RepositoryFile, validate_name

_READ_AHEAD = {".parquet": (64 << 10, 64 << 10), ".tar": (256 << 10, 4 << 20)}
"""Suffix of a file that is read in place → its smallest and largest read-ahead in bytes."""


@dataclass(frozen=True, slots=True)
class DatasetAddress:
    """words: what follows the name: a config, a split, or both."""

    hub: str
    name: str
    revision: str | None
    words: tuple[str, ...]
    text: str

    @property
    def split(self) -> str:
        return splits.normalize_split(self.words[-1]) if self.words else "train"


def parse_address(text: str, split: str | None = None) -> DatasetAddress:
    hub, _, rest = text.partition(":")
    name, *words = rest.split(":")
    name, _, revision = name.partition("@")
    if hub not in HUBS or not name or "" in words:
        raise UsageError(
            "not the address of a data set", where=text, hint="write hf:OWNER/NAME:SPLIT or modelscope:OWNER/NAME:SPLIT"
        )
    if split is not None:
        words.append(split)
    validate_name(name, hub)
    text = ":".join([f"{hub}:{name}" + (f"@{revision}" if revision else ""), *words])
    return DatasetAddress(hub, name, revision or None, tuple(words), text)


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A file in a repository that can be opened like a local path: `name`, `suffix`, `open("rb")`."""

    client: HttpClient
    repository: Repository
    file: RepositoryFile

    @property
    def name(self) -> str:
        return PurePosixPath(self.file.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.file.path).suffix

    def open(self, mode: str = "rb") -> IO[bytes]:
        read_ahead, max_read_ahead = _READ_AHEAD[self.suffix.lower()]
        file = RemoteFile(self.client, self.repository, self.file, read_ahead=read_ahead, max_read_ahead=max_read_ahead)
        return cast(IO[bytes], file)

    def __str__(self) -> str:
        return f"{self.repository.where}, {self.file.path}"


@dataclass(frozen=True, slots=True)
class HubDataset:
    """The files of one split, all of one format. folder: where tables are downloaded to."""

    repository: Repository
    files: list[RepositoryFile]
    folder: Path
    client: HttpClient
    on_progress: OnProgress = ignore_progress

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.files[0].path).suffix.lower()

    def open_file(self, index: int) -> Path:
        """A path to read the file by; other than a `Path` it is a `RemotePath`."""
        file = self.files[index]
        if PurePosixPath(file.path).suffix.lower() in _READ_AHEAD:
            return cast(Path, RemotePath(self.client, self.repository, file))
        return self.download(file)

    def download(self, file: RepositoryFile) -> Path:
        task = self.repository.build_task(file, self.folder)
        # Progress counts the bytes of this file, but not the file itself: the files it counts are images.
        download_all([task], self.client, lambda _, num_bytes: self.on_progress(0, num_bytes))
        return task.path

    def find_archives(self) -> list[RepositoryFile]:
        """The zips of the repository that are not its data files."""
        return [file for file in self.repository.find_by_suffix([".zip"]) if file not in self.files]


def open_dataset(
    address: DatasetAddress,
    client: HttpClient,
    *,
    revision: str,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    on_message: Callable[[str], None],
) -> HubDataset:
    """List the repository and choose the files of the split.

    revision: the one that an earlier start pinned, "" for the address's. Raises LorgnetteError if there are no data
    files, or the choice of config or split is not clear.
    """
    wanted = revision or address.revision
    if address.hub == "hf":
        repository = huggingface.list_files(client, address.name, "dataset", wanted)
    else:
        repository = modelscope.list_files(client, "dataset", address.name, wanted or "master")
    layout = splits.detect_layout(repository)
    if not layout:
        path, layout = _read_script(repository, folder, client)
        on_message(f"{repository.where}: URLs read from {path}; the script is not executed")
    config, split, files = splits.select_split(layout, address.words, where=repository.where)
    name = f"split {split}" if config == "default" else f"{config}, split {split}"
    on_message(f"{repository.where}: {name}, {len(files)} files")
    return HubDataset(repository, files, folder, client, on_progress)


def _read_script(repository: Repository, folder: Path, client: HttpClient) -> tuple[str, splits.Layout]:
    """(the loading script, the layout of the URLs in it) of a data set that has no data files of its own."""
    name = repository.name.rpartition("/")[2] + ".py"
    scripts = sorted(repository.find_by_suffix([".py"]), key=lambda file: file.path != name)
    if not scripts:
        kinds = ", ".join(sorted({Path(file.path).suffix or file.path for file in repository.files})[:12])
        raise LorgnetteError(
            f"no parquet, tar, CSV, JSON or zip files; it has {kinds or 'no files'}",
            where=repository.where,
            hint="take another data set",
        )
    task = repository.build_task(scripts[0], folder)
    download_all([task], client, ignore_progress)
    text = task.path.read_text(encoding="utf-8", errors="replace")
    layout: dict[str, list[RepositoryFile]] = {}
    for key, urls in script.find_data_urls(text, where=f"{repository.where}, {scripts[0].path}").items():
        for url in urls:
            file = RepositoryFile(url.rsplit("/", 1)[-1], None, None, url, is_external=True)
            split = splits.normalize_split(key) if key else splits.guess_split(file.path)
            layout.setdefault(split, []).append(file)
    return scripts[0].path, {"default": layout}
