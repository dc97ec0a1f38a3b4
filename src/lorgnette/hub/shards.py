"""WebDataset tars on a hub → rows with their pictures, member by member, until somebody has enough.

Members that share their name up to its first dot are one row: 000123.jpg with 000123.txt or 000123.json.
Knows nothing about hubs. Members are never unpacked by their names.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from lorgnette.errors import LorgnetteError
from lorgnette.hub.columns import CAPTION_NAMES
from lorgnette.hub.line import HttpClient
from lorgnette.hub.proof import IMAGE_SUFFIXES
from lorgnette.hub.ranged import RemoteFile
from lorgnette.hub.repository import Repository, RepositoryFile, is_safe_path
from lorgnette.hub.rows import Choice, Row, Token, captions

LARGEST = 256 << 20
_AHEAD = 256 << 10
_TEXTS = ("txt", "caption", "captions", "text", "cap")


@dataclass(slots=True)
class _Group:
    key: str
    start: int
    parts: dict[str, bytes] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True, slots=True)
class ShardRows:
    """choice.image and choice.caption name endings (jpg, txt), or a key of the JSON member for the caption."""

    files: Sequence[RepositoryFile]
    repository: Repository
    choice: Choice
    line: HttpClient

    def read(self, after: Token | None) -> Iterator[tuple[Row, Token]]:
        """Token: [shard, byte where the next row begins]."""
        if self.choice.sample is not None:
            raise LorgnetteError(
                "a fair sample of WebDataset shards would fetch all of them",
                where=self.repository.where,
                hint="take the first rows with --rows",
            )
        first, offset = (int(after[0]), int(after[1])) if after else (0, 0)
        for index in range(first, len(self.files)):
            groups = self._groups(self.files[index], offset if index == first else 0)
            for number, (group, end) in enumerate(groups, start=1):
                yield self._row(group, self.files[index].path, number), [index, end]

    def _groups(self, file: RepositoryFile, offset: int) -> Iterator[tuple[_Group, int]]:
        """Each group, and the byte behind it."""
        source = RemoteFile(self.line, self.repository, file, read_ahead=_AHEAD)
        if offset >= source.size():
            return
        source.seek(offset)
        where = f"{self.repository.where}, {file.path}"
        group: _Group | None = None
        try:
            with tarfile.open(fileobj=cast(Any, source), mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else it remembers every member of the shard
                    if not info.isfile():
                        continue
                    key, ending = _parted(info.name, where)
                    if group is not None and group.key != key:
                        yield group, info.offset
                        group = None
                    group = group or _Group(key, info.offset)
                    self._take(tar, info, ending, group)
        except (tarfile.TarError, EOFError) as error:
            raise LorgnetteError(
                f"the tar file cannot be read: {error}", where=where, hint="take another one"
            ) from error
        if group is not None:
            yield group, source.size()

    def _take(self, tar: tarfile.TarFile, info: tarfile.TarInfo, ending: str, group: _Group) -> None:
        if info.size > LARGEST:
            group.fault = f"{info.name} has {info.size:,} bytes: refused"
        elif (member := tar.extractfile(info)) is not None:
            group.parts[ending] = member.read()

    def _row(self, group: _Group, path: str, number: int) -> Row:
        endings = [ending for ending in group.parts if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES]
        image = self.choice.image or (endings[0] if endings else "")
        picture = group.parts.get(image, b"")
        fault = group.fault or ("" if picture else f"there is no picture among {', '.join(group.parts)}")
        name = f"{group.key}.{image}".replace("/", "_")
        return Row(f"{path}, {group.key}", self._captions(group.parts), picture, name, fault=fault)

    def _captions(self, parts: dict[str, bytes]) -> tuple[str, ...]:
        asked = self.choice.caption
        for ending in (asked, *_TEXTS):
            if ending in parts:
                return captions(parts[ending].decode("utf-8", errors="replace"))
        try:
            said = json.loads(parts.get("json", b"{}"))
        except (ValueError, RecursionError):
            return ()
        keys = [asked] if asked else [name for group in CAPTION_NAMES for name in group]
        return next((captions(said[key]) for key in keys if said.get(key)), ()) if isinstance(said, dict) else ()


def _parted(name: str, where: str) -> tuple[str, str]:
    """000123, jpg; the folder belongs to the first, and the ending begins at the name's first dot."""
    if not is_safe_path(name):
        raise LorgnetteError(
            f"a path in the archive leaves its folder: {name!r}", where=where, hint="do not trust this data set"
        )
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()
