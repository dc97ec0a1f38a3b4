"""Members of a zip file, read with care: nothing leaves its folder, nothing swells beyond what its size allows."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from lorgnette.errors import LorgnetteError
from lorgnette.hub.repository import is_safe_path

_HARMLESS, _MOST_TIMES = 10 << 20, 200


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file all of whose members stay inside; what goes wrong while reading it is one line."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not is_safe_path(name):
                    raise LorgnetteError(
                        f"a path in the archive leaves its folder: {name!r}",
                        where=str(path),
                        hint="do not trust this file; get the data elsewhere",
                    )
            yield archive
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise LorgnetteError(f"the zip file cannot be read: {error}", where=str(path), hint="get it anew") from error
    except OSError as error:
        raise LorgnetteError(
            f"cannot be read: {error.strerror or error}", where=str(path), hint="check the path and its permissions"
        ) from error


def list_members(archive: zipfile.ZipFile, suffixes: tuple[str, ...]) -> list[zipfile.ZipInfo]:
    """The files with one of these endings, without what macOS leaves beside them."""
    return [
        info
        for info in archive.infolist()
        if not info.is_dir()
        and info.filename.lower().endswith(suffixes)
        and not info.filename.startswith("__MACOSX/")
        and not PurePosixPath(info.filename).name.startswith("._")
    ]


def check_member_size(info: zipfile.ZipInfo, largest: int, *, where: str) -> zipfile.ZipInfo:
    """The member, unless it would unpack to more than `largest` bytes or to many times its packed size. (zipfile
    itself never gives more than the size that is declared.)"""
    swells = info.file_size > _HARMLESS and info.file_size > _MOST_TIMES * max(1, info.compress_size)
    if info.file_size > largest or swells:
        raise LorgnetteError(
            f"{info.filename} would unpack from {info.compress_size:,} to {info.file_size:,} bytes: refused",
            where=where,
            hint="a zip bomb? unpack it by hand if you trust it",
        )
    return info
