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
from lorgnette.hub.download import Seen, download, unseen
from lorgnette.hub.fetch import Wanted
from lorgnette.hub.journal import Journal
from lorgnette.hub.line import Line
from lorgnette.hub.parquet import ParquetRows
from lorgnette.hub.repository import Listed, Repository, checked
from lorgnette.hub.rows import Choice, Rows
from lorgnette.hub.shards import ShardRows
from lorgnette.hub.table import TableRows
from lorgnette.hub.trouble import SourceError


@dataclass(frozen=True, slots=True)
class Address:
    """asked: the words behind the name: a config, a split, or both."""

    hub: str
    name: str
    revision: str | None
    asked: tuple[str, ...]
    text: str

    @property
    def split(self) -> str:
        return splits.canonical(self.asked[-1]) if self.asked else "train"


def parse(text: str, split: str | None = None) -> Address:
    hub, _, rest = text.partition(":")
    name, *asked = rest.split(":")
    name, _, revision = name.partition("@")
    if hub not in HUBS or not name or "" in asked:
        raise LorgnetteError(
            "this is no data set on a hub",
            where=text,
            remedy="write hf:OWNER/NAME:SPLIT or modelscope:OWNER/NAME:SPLIT",
        )
    if split is not None:
        asked.append(split)
    checked(name, hub)
    text = ":".join([f"{hub}:{name}" + (f"@{revision}" if revision else ""), *asked])
    return Address(hub, name, revision or None, tuple(asked), text)


def open_rows(
    address: Address, journal: Journal, choice: Choice, line: Line, seen: Seen, say: Callable[[str], None]
) -> Rows:
    """List the repository, pin its revision, and choose the reader of its format."""
    revision = journal.revision or address.revision
    if address.hub == "hf":
        repository = huggingface.files(line, address.name, "dataset", revision)
    else:
        repository = modelscope.files(line, "dataset", address.name, revision or "master")
    journal.pin(repository.revision)
    layout = splits.layout(repository) or _scripted(repository, journal, line, say)
    config, split, files = splits.pick(layout, address.asked, where=repository.where)
    say(f"{repository.where}: {'' if config == 'default' else config + ', '}split {split}, {len(files)} files")
    if files[0].path.endswith(".parquet"):
        return ParquetRows(files, repository, choice, line, say)
    if files[0].path.endswith(".tar"):
        return ShardRows(files, repository, choice, line)
    bring = [partial(_brought, repository.wanted(file, journal.folder / "files"), line, seen) for file in files]
    return TableRows(bring, repository, choice)


def _brought(wanted: Wanted, line: Line, seen: Seen = unseen) -> Path:
    """A table, whole on disk. Progress counts its bytes, but no file: files are pictures."""
    failed = download([wanted], line=line, seen=lambda _, count: seen(0, count)).failed
    if failed:
        raise SourceError(failed[0].what, where=failed[0].url, remedy=failed[0].remedy)
    return wanted.path


def _scripted(repository: Repository, journal: Journal, line: Line, say: Callable[[str], None]) -> splits.Layout:
    """The layout of a data set that is only a loading script: the addresses written in it."""
    own = repository.name.rpartition("/")[2] + ".py"
    scripts = sorted(repository.named([".py"]), key=lambda file: file.path != own)
    if not scripts:
        kinds = ", ".join(sorted({Path(file.path).suffix or file.path for file in repository.files})[:12]) or "nothing"
        raise LorgnetteError(
            f"no parquet, tar, CSV or JSONL files; there are {kinds}",
            where=repository.where,
            remedy="take another data set",
        )
    path = _brought(repository.wanted(scripts[0], journal.folder / "files"), line)
    text = path.read_text(encoding="utf-8", errors="replace")
    found: dict[str, list[Listed]] = {}
    for key, urls in script.addresses(text, where=f"{repository.where}, {scripts[0].path}").items():
        for url in urls:
            file = Listed(url.rsplit("/", 1)[-1], None, None, url, outside=True)
            split = splits.canonical(key) if key else splits.by_name(file.path)
            found.setdefault(split, []).append(file)
    say(f"{repository.where}: addresses read from {scripts[0].path}, which is not executed")
    return {"default": found}
