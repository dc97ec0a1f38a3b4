"""`hf:NAME[@REVISION][:config][:split]` or `modelscope:NS/NAME[@REVISION][:split]` → a reader of its rows.

The only module that knows both hubs and all formats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.hub import huggingface, modelscope, script, splits
from lorgnette.hub.address import HUBS
from lorgnette.hub.download import OnProgress, download_files, ignore_progress
from lorgnette.hub.fetch import DownloadTask
from lorgnette.hub.journal import Journal
from lorgnette.hub.line import HttpClient
from lorgnette.hub.parquet import ParquetRows
from lorgnette.hub.repository import Repository, RepositoryFile, validate_name
from lorgnette.hub.rows import Choice, Rows
from lorgnette.hub.shards import ShardRows
from lorgnette.hub.table import TableRows
from lorgnette.hub.trouble import SourceError


@dataclass(frozen=True, slots=True)
class DatasetAddress:
    """asked: the words behind the name: a config, a split, or both."""

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
    name, *asked = rest.split(":")
    name, _, revision = name.partition("@")
    if hub not in HUBS or not name or "" in asked:
        raise LorgnetteError(
            "this is no data set on a hub",
            where=text,
            hint="write hf:OWNER/NAME:SPLIT or modelscope:OWNER/NAME:SPLIT",
        )
    if split is not None:
        asked.append(split)
    validate_name(name, hub)
    text = ":".join([f"{hub}:{name}" + (f"@{revision}" if revision else ""), *asked])
    return DatasetAddress(hub, name, revision or None, tuple(asked), text)


def open_rows(
    address: DatasetAddress,
    journal: Journal,
    choice: Choice,
    line: HttpClient,
    seen: OnProgress,
    say: Callable[[str], None],
) -> Rows:
    """List the repository, pin its revision, and choose the reader of its format."""
    revision = journal.revision or address.revision
    if address.hub == "hf":
        repository = huggingface.list_files(line, address.name, "dataset", revision)
    else:
        repository = modelscope.list_files(line, "dataset", address.name, revision or "master")
    journal.pin(repository.revision)
    layout = splits.detect_layout(repository) or _read_script(repository, journal, line, say)
    config, split, files = splits.select_split(layout, address.words, where=repository.where)
    say(f"{repository.where}: {'' if config == 'default' else config + ', '}split {split}, {len(files)} files")
    if files[0].path.endswith(".parquet"):
        return ParquetRows(files, repository, choice, line, say)
    if files[0].path.endswith(".tar"):
        return ShardRows(files, repository, choice, line)
    bring = [
        partial(_download_table, repository.build_task(file, journal.folder / "files"), line, seen) for file in files
    ]
    return TableRows(bring, repository, choice)


def _download_table(wanted: DownloadTask, line: HttpClient, seen: OnProgress = ignore_progress) -> Path:
    """A table, whole on disk. Progress counts its bytes, but no file: files are pictures."""
    failed = download_files([wanted], client=line, on_progress=lambda _, count: seen(0, count)).failures
    if failed:
        raise SourceError(failed[0].message, where=failed[0].url, hint=failed[0].hint)
    return wanted.path


def _read_script(
    repository: Repository, journal: Journal, line: HttpClient, say: Callable[[str], None]
) -> splits.Layout:
    """The layout of a data set that is only a loading script: the addresses written in it."""
    own = repository.name.rpartition("/")[2] + ".py"
    scripts = sorted(repository.find_by_suffix([".py"]), key=lambda file: file.path != own)
    if not scripts:
        kinds = ", ".join(sorted({Path(file.path).suffix or file.path for file in repository.files})[:12]) or "nothing"
        raise LorgnetteError(
            f"no parquet, tar, CSV or JSONL files; there are {kinds}",
            where=repository.where,
            hint="take another data set",
        )
    path = _download_table(repository.build_task(scripts[0], journal.folder / "files"), line)
    text = path.read_text(encoding="utf-8", errors="replace")
    found: dict[str, list[RepositoryFile]] = {}
    for key, urls in script.find_data_urls(text, where=f"{repository.where}, {scripts[0].path}").items():
        for url in urls:
            file = RepositoryFile(url.rsplit("/", 1)[-1], None, None, url, is_external=True)
            split = splits.normalize_split(key) if key else splits.guess_split(file.path)
            found.setdefault(split, []).append(file)
    say(f"{repository.where}: addresses read from {scripts[0].path}, which is not executed")
    return {"default": found}
