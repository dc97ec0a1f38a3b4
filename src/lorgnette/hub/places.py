"""Where a picture may be had when its own address is dead: a folder, a zip file, or another host.

Pictures are looked for by the name in their address, then by their official COCO names.
"""

import os
import re
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from lorgnette.errors import LorgnetteError
from lorgnette.hub import archive, proof, trouble
from lorgnette.hub.download import Seen, download
from lorgnette.hub.fetch import Wanted
from lorgnette.hub.line import Line
from lorgnette.hub.proof import PICTURES
from lorgnette.hub.trouble import SourceError

LARGEST_PICTURE = 256 << 20
_FOLDERS = ("", "train2014", "val2014", "train2017", "val2017", "images", "pictures")


@dataclass(frozen=True, slots=True)
class Missed:
    """A picture that is still to be had, and under which names it may be found."""

    path: Path
    names: tuple[str, ...]


class Place(Protocol):
    @property
    def where(self) -> str:
        """What it was called."""
        ...

    def bring(self, missed: Sequence[Missed], arrived: Callable[[Path], None], seen: Seen) -> None:
        """Put those it has at their paths and tell which `arrived`; the others stay missed."""
        ...


def names(url: str, number: int | None, split: str) -> tuple[str, ...]:
    """Names a picture may have elsewhere: the one in its address, then COCO's two official ones."""
    own = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    found = [own] if Path(own).suffix.lower() in PICTURES else []
    if number is None and (digits := re.search(r"(\d{12})(?=\.\w+$)", own)):
        number = int(digits[1])
    if number is not None:
        said = re.search(r"(train|val)\d{4}", url)
        part = said[1] if said else "val" if split.startswith("val") else "train"
        found += [f"COCO_{part}2014_{number:012d}.jpg", f"{number:012d}.jpg"]
    return tuple(dict.fromkeys(found))


def place(where: str, line: Line) -> Place:
    """What --images-from names."""
    if where.startswith(("http://", "https://")):
        return _Host(trouble.shown(where), where.rstrip("/"), line)
    path = Path(where).expanduser()
    if path.is_dir():
        return _Folder(where, path)
    if path.is_file():
        with archive.opened(path):
            return _Zip(where, path)
    raise LorgnetteError(
        "no such folder, zip file or address", where=where, remedy="give --images-from one of the three"
    )


@dataclass(frozen=True, slots=True)
class _Folder:
    where: str
    folder: Path

    def bring(self, missed: Sequence[Missed], arrived: Callable[[Path], None], seen: Seen) -> None:
        for each in missed:
            candidates = [self.folder / sub / name for name in each.names for sub in _FOLDERS]
            if any(path.is_file() and _put(each.path, path) for path in candidates):
                arrived(each.path)
                seen(1, 0)


@dataclass(frozen=True, slots=True)
class _Zip:
    where: str
    path: Path

    def bring(self, missed: Sequence[Missed], arrived: Callable[[Path], None], seen: Seen) -> None:
        with archive.opened(self.path) as zipped:
            infos = archive.members(zipped, tuple(PICTURES))
            index = {PurePosixPath(info.filename).name: info for info in infos}
            for each in missed:
                found = [index[name] for name in each.names if name in index]
                if any(
                    _put(each.path, zipped.read(archive.bounded(info, LARGEST_PICTURE, where=str(self.path))))
                    for info in found
                ):
                    arrived(each.path)
                    seen(1, 0)


@dataclass(frozen=True, slots=True)
class _Host:
    where: str
    base: str
    line: Line

    def bring(self, missed: Sequence[Missed], arrived: Callable[[Path], None], seen: Seen) -> None:
        for turn in range(max((len(each.names) for each in missed), default=0)):
            left = [each for each in missed if len(each.names) > turn and not each.path.is_file()]
            wanted = [Wanted(f"{self.base}/{urllib.parse.quote(each.names[turn])}", each.path) for each in left]
            download(wanted, line=self.line, seen=seen)
            for each in left:
                if each.path.is_file():
                    arrived(each.path)


def _put(path: Path, source: Path | bytes) -> bool:
    """Write beside and rename, if it is a whole picture."""
    part = path.with_name(f".{path.name}.copy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        proof.check(part, path.name, where=path.name)
        os.replace(part, path)
    except SourceError:
        part.unlink()
        return False
    except OSError as error:
        raise trouble.of_disk(error, path) from error
    return True
