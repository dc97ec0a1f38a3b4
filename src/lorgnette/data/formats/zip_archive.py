"""A zip with one data file (CSV, TSV, JSON or JSONL) and, if they are not elsewhere, the images that it names.

Nothing is unpacked by its own name, and nothing that grows beyond what its packed size allows. Read only.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import cast

from lorgnette.data.image_resolver import check_member_name
from lorgnette.data.row_location import PendingRow, ReadOptions, Row, read_pending
from lorgnette.errors import LorgnetteError

MAX_TABLE_BYTES = 8 << 30
_HARMLESS_BYTES, _MAX_RATIO = 10 << 20, 200


def read_zip(
    path: Path, options: ReadOptions, readers: Mapping[str, Callable[[Path, ReadOptions], Iterator[PendingRow | Row]]]
) -> Iterator[Row]:
    """The rows of the data file inside, read with one of `readers` by its suffix.

    Images are looked for in `options.images_from`, if that is set, else in the zip itself.
    """
    with _open_zip(path) as archive:
        # Without the files that macOS adds.
        paths = {name: PurePosixPath(name) for name in archive.namelist() if not name.startswith("__MACOSX/")}
        names = [name for name, path in paths.items() if not name.endswith("/") and not path.name.startswith("._")]
        tables = [name for name in names if paths[name].suffix.lower() in readers]
        if len(tables) != 1:
            message = f"the zip holds {len(tables)} data files ({', '.join(tables[:5]) or 'none'}), not one"
            raise LorgnetteError(message, where=str(path), hint="unpack it first")
        info = archive.getinfo(tables[0])
        check_unpacked_size(info, path)
        member = zipfile.Path(archive, info.filename)
        read = readers[paths[info.filename].suffix.lower()]
        options = replace(options, source=path, images_from=options.images_from or path)
        yield from read_pending(read(cast(Path, member), options))


def check_unpacked_size(info: zipfile.ZipInfo, path: Path) -> None:
    """Raise LorgnetteError for a bomb. zipfile itself never gives more bytes than are declared."""
    is_bomb = info.file_size > _HARMLESS_BYTES and info.file_size > _MAX_RATIO * max(1, info.compress_size)
    if info.file_size > MAX_TABLE_BYTES or is_bomb:
        message = f"{info.filename} would unpack from {info.compress_size:,} to {info.file_size:,} bytes: refused"
        raise LorgnetteError(message, where=str(path), hint="a zip bomb? unpack it yourself if you trust it")


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip whose members all stay inside; what goes wrong while reading it names the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                check_member_name(name)
            yield archive
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise LorgnetteError(f"the zip file cannot be read: {error}", where=str(path), hint="get it again") from error
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise LorgnetteError(message, where=str(path), hint="check the path and its permissions") from error
