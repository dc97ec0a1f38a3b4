"""`hf:NAME[@REVISION][:CONFIG][:SPLIT]` or `modelscope:NS/NAME[@REVISION][:SPLIT]` → the data files of one split.

A table is downloaded completely when it is opened; of a parquet file or a tar only the bytes that are read are fetched.
Knows nothing about the contents of the files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, cast

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.hub import huggingface, modelscope, script, splits
from lorgnette.hub.address import HUBS
from lorgnette.hub.download import OnProgress, download_all, ignore_progress
from lorgnette.hub.http import HttpClient
from lorgnette.hub.remote_file import RemoteFile
from lorgnette.hub.repository import Repository, RepositoryFile, validate_name
from lorgnette.io.image_signature import IMAGE_SUFFIXES

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
        hint = "write hf:OWNER/NAME:SPLIT or modelscope:OWNER/NAME:SPLIT"
        raise UsageError("not the address of a data set", where=text, hint=hint)
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
        return cast(IO[bytes], RemoteFile(self.client, self.repository, self.file, *_READ_AHEAD[self.suffix.lower()]))

    def __str__(self) -> str:
        return f"{self.repository.where}, {self.file.path}"


@dataclass(frozen=True, slots=True)
class HubDataset:
    """The files of one split, all of one format. folder: where tables are downloaded to.

    split: its name in the repository, "" if only the file itself may have it. word: its name as the user wrote it.
    """

    repository: Repository
    files: list[RepositoryFile]
    folder: Path
    client: HttpClient
    on_progress: OnProgress = ignore_progress
    split: str = ""
    word: str | None = None

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.files[0].path).suffix.lower()

    def open_file(self, index: int, max_rows: int | None = None) -> Path:
        """A path to read the file by; other than a `Path` it is a `RemotePath`. max_rows: of a folder, only these."""
        file = self.files[index]
        if file.is_folder:
            return self._open_folder(file.path, max_rows)
        if PurePosixPath(file.path).suffix.lower() in _READ_AHEAD:
            return cast(Path, RemotePath(self.client, self.repository, file))
        return self.download(file)

    def download(self, *files: RepositoryFile) -> Path:
        """The path of the first of these files, when all are downloaded."""
        tasks = [self.repository.build_task(file, self.folder) for file in files]
        # Progress counts the bytes of these files, but not the files themselves: the files it counts are images.
        download_all(tasks, self.client, lambda _, num_bytes: self.on_progress(0, num_bytes))
        return tasks[0].path if tasks else self.folder

    def _open_folder(self, path: str, max_rows: int | None) -> Path:
        """A local folder with the texts of the first rows, and an empty file in place of each image."""
        files = {PurePosixPath(file.path): file for file in self.repository.list_folder(path)}
        texts = {name.with_suffix(""): name for name in files if name.suffix.lower() == ".txt"}
        images = {name for name in files if name.suffix.lower() in IMAGE_SUFFIXES}
        for name in images:
            placeholder = self.repository.build_task(files[name], self.folder).path
            placeholder.parent.mkdir(parents=True, exist_ok=True)
            placeholder.touch()
        stems = {name.with_suffix("") for name in images}
        rows = sorted(images | {name for stem, name in texts.items() if stem not in stems})[:max_rows]
        needed = {texts[stem] for row in rows if (stem := row.with_suffix("")) in texts}
        self.download(*(files[name] for name in sorted(needed)))
        return self.folder / path


def open_dataset(
    address: DatasetAddress,
    client: HttpClient,
    *,
    revision: str,
    folder: Path,
    on_progress: OnProgress = ignore_progress,
    on_message: Callable[[str], None],
    find_entries: Callable[[HubDataset], Mapping[str, RepositoryFile]] = lambda dataset: {},
) -> HubDataset:
    """List the repository and choose the files of the split.

    revision: the one that an earlier start pinned, "" for the address's. find_entries: the repository → data files
    that a file in it names. Raises LorgnetteError if there are no data files, or the choice is not clear.
    """
    wanted = revision or address.revision
    if address.hub == "hf":
        repository = huggingface.list_files(client, address.name, "dataset", wanted)
    else:
        repository = modelscope.list_files(client, "dataset", address.name, wanted or "master")
    dataset = HubDataset(repository, [], folder, client, on_progress)
    entries = find_entries(dataset)
    layout = splits.detect_layout(repository)
    if entries and (not address.words or splits.match_split(entries, address.words[-1])):
        layout = {"default": {name: [file] for name, file in entries.items()}}
    if not layout:
        path, layout = _read_script(dataset)
        on_message(f"{repository.where}: URLs read from {path}; the script is not executed")
    config, split, word, files = splits.select_split(layout, address.words, where=repository.where)
    name = f"split {split or word}" if config == "default" else f"{config}, split {split or word}"
    on_message(f"{repository.where}: {name}, {len(files)} files")
    return replace(dataset, files=files, split=split, word=word)


def _read_script(dataset: HubDataset) -> tuple[str, splits.Layout]:
    """(the loading script, the layout of the URLs in it) of a data set that has no data files of its own."""
    repository = dataset.repository
    name = repository.name.rpartition("/")[2] + ".py"
    scripts = sorted(repository.find_by_suffix([".py"]), key=lambda file: file.path != name)
    if not scripts:
        kinds = ", ".join(sorted({Path(file.path).suffix or file.path for file in repository.files})[:12])
        message = f"no parquet, tar, CSV, JSON or zip files; it has {kinds or 'no files'}"
        raise LorgnetteError(message, where=repository.where, hint="take another data set")
    path = replace(dataset, on_progress=ignore_progress).download(scripts[0])
    text = path.read_text(encoding="utf-8", errors="replace")
    layout: dict[str, list[RepositoryFile]] = {}
    for key, urls in script.find_data_urls(text, where=f"{repository.where}, {scripts[0].path}").items():
        for url in urls:
            file = RepositoryFile(url.rsplit("/", 1)[-1], None, None, url, is_external=True)
            split = splits.normalize_split(key) if key else splits.guess_split(file.path)
            layout.setdefault(split, []).append(file)
    return scripts[0].path, {"default": layout}
