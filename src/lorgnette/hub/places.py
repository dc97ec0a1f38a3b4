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
from lorgnette.hub.download import OnProgress, download_files
from lorgnette.hub.fetch import DownloadTask
from lorgnette.hub.line import HttpClient
from lorgnette.hub.proof import IMAGE_SUFFIXES
from lorgnette.hub.trouble import SourceError

MAX_IMAGE_BYTES = 256 << 20
_SUBFOLDERS = ("", "train2014", "val2014", "train2017", "val2017", "images", "pictures")


@dataclass(frozen=True, slots=True)
class MissingImage:
    """A picture that is still to be had, and under which names it may be found."""

    path: Path
    file_names: tuple[str, ...]


class ImageFallback(Protocol):
    @property
    def where(self) -> str:
        """What it was called."""
        ...

    def provide(self, missed: Sequence[MissingImage], arrived: Callable[[Path], None], seen: OnProgress) -> None:
        """Put those it has at their paths and tell which `arrived`; the others stay missed."""
        ...


def list_candidate_names(url: str, number: int | None, split: str) -> tuple[str, ...]:
    """Names a picture may have elsewhere: the one in its address, then COCO's two official ones."""
    own = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    found = [own] if Path(own).suffix.lower() in IMAGE_SUFFIXES else []
    if number is None and (digits := re.search(r"(\d{12})(?=\.\w+$)", own)):
        number = int(digits[1])
    if number is not None:
        said = re.search(r"(train|val)\d{4}", url)
        part = said[1] if said else "val" if split.startswith("val") else "train"
        found += [f"COCO_{part}2014_{number:012d}.jpg", f"{number:012d}.jpg"]
    return tuple(dict.fromkeys(found))


def open_fallback(where: str, line: HttpClient) -> ImageFallback:
    """What --images-from names."""
    if where.startswith(("http://", "https://")):
        return _HostFallback(trouble.redact_url(where), where.rstrip("/"), line)
    path = Path(where).expanduser()
    if path.is_dir():
        return _FolderFallback(where, path)
    if path.is_file():
        with archive.open_zip(path):
            return _ZipFallback(where, path)
    raise LorgnetteError("no such folder, zip file or address", where=where, hint="give --images-from one of the three")


@dataclass(frozen=True, slots=True)
class _FolderFallback:
    where: str
    folder: Path

    def provide(self, missed: Sequence[MissingImage], arrived: Callable[[Path], None], seen: OnProgress) -> None:
        for each in missed:
            candidates = [self.folder / sub / name for name in each.file_names for sub in _SUBFOLDERS]
            if any(path.is_file() and _copy_if_valid(each.path, path) for path in candidates):
                arrived(each.path)
                seen(1, 0)


@dataclass(frozen=True, slots=True)
class _ZipFallback:
    where: str
    path: Path

    def provide(self, missed: Sequence[MissingImage], arrived: Callable[[Path], None], seen: OnProgress) -> None:
        with archive.open_zip(self.path) as zipped:
            infos = archive.list_members(zipped, tuple(IMAGE_SUFFIXES))
            index = {PurePosixPath(info.filename).name: info for info in infos}
            for each in missed:
                found = [index[name] for name in each.file_names if name in index]
                if any(
                    _copy_if_valid(
                        each.path, zipped.read(archive.check_member_size(info, MAX_IMAGE_BYTES, where=str(self.path)))
                    )
                    for info in found
                ):
                    arrived(each.path)
                    seen(1, 0)


@dataclass(frozen=True, slots=True)
class _HostFallback:
    where: str
    base: str
    line: HttpClient

    def provide(self, missed: Sequence[MissingImage], arrived: Callable[[Path], None], seen: OnProgress) -> None:
        for turn in range(max((len(each.file_names) for each in missed), default=0)):
            left = [each for each in missed if len(each.file_names) > turn and not each.path.is_file()]
            wanted = [
                DownloadTask(f"{self.base}/{urllib.parse.quote(each.file_names[turn])}", each.path) for each in left
            ]
            download_files(wanted, client=self.line, on_progress=seen)
            for each in left:
                if each.path.is_file():
                    arrived(each.path)


def _copy_if_valid(path: Path, source: Path | bytes) -> bool:
    """Write beside and rename, if it is a whole picture."""
    part = path.with_name(f".{path.name}.copy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        proof.check_file(part, path.name, where=path.name)
        os.replace(part, path)
    except SourceError:
        part.unlink()
        return False
    except OSError as error:
        raise trouble.explain_disk_error(error, path) from error
    return True
