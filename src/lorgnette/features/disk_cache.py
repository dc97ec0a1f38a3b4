"""Image features on disk, so that a second run need not load the vision tower.

    ~/.cache/lorgnette/features/SET/     one set a tower, way of processing, dtype and kind of device
        rows     features, row after row, as they lie in memory
        index    48 bytes a picture: sha256 of its file and grid · first row · rows · crc32 of these
        lock     held while appending               in_use   held, shared, by every process that has the set open

Only ever appended to, rows before index: whoever is killed leaves a tail that no whole index entry speaks of, and the
next one writes over it. Two processes may have a set open; a picture both have made is kept once.
"""

import fcntl
import hashlib
import json
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import PIL
import torch
from jaxtyping import Float
from torch import Tensor

from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.weight_loader import index_tensors
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import ImageGrid

FORMAT = 1
MAX_BYTES = 40 * 2**30
"""Of all sets together when one is opened (oldest out), and of one set."""
MIN_FREE_BYTES = 2 * 2**30
"""Bytes of the disk that are never taken."""
_ENTRY = struct.Struct("<32sQII")
_SAMPLE_BYTES = 4096
_TOWER_PREFIX = "model.visual."


def get_cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorgnette" / "features"


def open_disk_cache(
    checkpoint: BaseCheckpoint, rule: ImageProcessor, device: torch.device, dtype: torch.dtype
) -> "FeatureDiskCache":
    """The set of features that this tower makes of pictures processed like this, rounded as this device does.

    Raises LorgnetteError where the checkpoint is broken or the store cannot be written."""
    weights = {name: entry for name, entry in index_tensors(checkpoint).items() if name.startswith(_TOWER_PREFIX)}
    processing = [
        rule.patch_size,
        rule.merge_size,
        rule.temporal_patch_size,
        rule.image_mean,
        rule.image_std,
        PIL.__version__,
    ]
    identity = [FORMAT, hash_tower(checkpoint), processing, str(dtype), device.type]
    return FeatureDiskCache(
        get_cache_root(),
        hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32],
        weights[checkpoint.family.feature_weight].shape[0],
        dtype,
    )


def hash_tower(checkpoint: BaseCheckpoint) -> str:
    """A hash of the vision tower's weights: names, shapes, types and samples of each, wherever in the files they lie.
    Milliseconds, where hashing all of it takes a second."""
    digest = hashlib.sha256()
    for name, entry in sorted(index_tensors(checkpoint).items()):
        if not name.startswith(_TOWER_PREFIX):
            continue
        digest.update(f"{name} {entry.shape} {entry.dtype}".encode())
        with open(entry.path, "rb") as file:
            for at in (entry.start, (entry.start + entry.end) // 2, max(entry.start, entry.end - _SAMPLE_BYTES)):
                file.seek(at)
                digest.update(file.read(min(_SAMPLE_BYTES, entry.end - at)))
    return digest.hexdigest()


def hash_image(grid: ImageGrid) -> bytes | None:
    """The picture's bytes and the size it is seen in, hashed; None where there is no such file."""
    path = grid.image.path
    if not path.is_file():
        return None
    digest = hashlib.sha256(f"{grid.t} {grid.h} {grid.w} ".encode())
    digest.update(path.read_bytes())
    return digest.digest()


class FeatureDiskCache:
    """One set of features, each picture's [rows, width]."""

    def __init__(self, root: Path, name: str, width: int, dtype: torch.dtype) -> None:
        """Raises LorgnetteError where the folder cannot be made or opened."""
        self._folder, self._width, self._dtype = root / name, width, dtype
        self._row_bytes = width * dtype.itemsize
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _lock_file(root / "lock", fcntl.LOCK_EX):
                self._folder.mkdir(exist_ok=True)
                self._in_use_file = _lock_in_use(self._folder, fcntl.LOCK_SH)
                os.utime(self._folder / "in_use")
                _evict_oldest(root, self._folder)
            self._index: dict[bytes, tuple[int, int]] = {}
            self._index_bytes_read = 0
            self._read_index()
            self._map = _map_file(self._folder / "rows")
        except OSError as error:
            raise self._build_error(f"cannot be opened: {error.strerror or error}") from error

    @property
    def is_empty(self) -> bool:
        return not self._index

    def get(self, key: bytes) -> Float[Tensor, "P C"] | None:
        """The picture's features, as a view of the file; None where they were not there when the set was opened."""
        if key not in self._index or self._map is None:
            return None
        first, rows = self._index[key]
        if (first + rows) * self._row_bytes > len(self._map):
            return None
        count, offset = rows * self._width, first * self._row_bytes
        return torch.frombuffer(self._map, dtype=self._dtype, count=count, offset=offset).view(rows, self._width)

    def append(self, features: Mapping[bytes, Float[Tensor, "_ C"]]) -> None:
        """Keep features that lie in the host's memory. Raises LorgnetteError where there is no room or no right to."""
        try:
            with _lock_file(self._folder / "lock", fcntl.LOCK_EX):
                self._read_index()
                self._append_rows({key: rows for key, rows in features.items() if key not in self._index and len(rows)})
        except OSError as error:
            raise self._build_error(f"cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """What `get` gave stays valid."""
        self._in_use_file.close()

    def _append_rows(self, features: Mapping[bytes, Tensor]) -> None:
        size = sum(len(rows) for rows in features.values()) * self._row_bytes
        with open(self._folder / "rows", "ab") as file:
            first = -(-file.tell() // self._row_bytes)  # behind whatever part of a row a killed process left
            if (
                first * self._row_bytes + size > MAX_BYTES
                or shutil.disk_usage(self._folder).free - size < MIN_FREE_BYTES
            ):
                raise self._build_error("is full")
            file.truncate(first * self._row_bytes)
            entries = []
            for key, rows in features.items():
                file.write(rows.to(self._dtype).contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]
                entries.append(_ENTRY.pack(key, first, len(rows), _compute_crc(key, first, len(rows))))
                first += len(rows)
            file.flush()
            os.fsync(file.fileno())
        with open(self._folder / "index", "ab") as file:
            file.truncate(file.tell() // _ENTRY.size * _ENTRY.size)
            file.write(b"".join(entries))

    def _read_index(self) -> None:
        """What has been added since it was last read, by whichever process. An entry that is torn is none."""
        path = self._folder / "index"
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(self._index_bytes_read)
            data = file.read()
        whole = len(data) // _ENTRY.size * _ENTRY.size
        self._index_bytes_read += whole
        for key, first, rows, crc in _ENTRY.iter_unpack(data[:whole]):
            if crc == _compute_crc(key, first, rows):
                self._index[key] = (first, rows)

    def _build_error(self, message: str) -> LorgnetteError:
        return LorgnetteError(
            f"feature store {message}",
            where=str(self._folder),
            hint="delete the folder above or set XDG_CACHE_HOME to another disk; the run does without meanwhile",
        )


def _compute_crc(key: bytes, first: int, rows: int) -> int:
    return zlib.crc32(_ENTRY.pack(key, first, rows, 0))


def _map_file(path: Path) -> mmap.mmap | None:
    """Copy-on-write, because torch wants memory that may be written."""
    if not path.exists() or not path.stat().st_size:
        return None
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _evict_oldest(root: Path, current: Path) -> None:
    """Delete the sets that were opened longest ago, but for this one and any that a process has open."""
    sets = sorted(root.glob("*/in_use"), key=lambda path: path.stat().st_mtime)
    sizes = {path.parent: sum(file.stat().st_size for file in path.parent.iterdir()) for path in sets}
    total = sum(sizes.values())
    for folder, size in sizes.items():
        if total <= MAX_BYTES:
            return
        if folder != current and _is_unused(folder):
            shutil.rmtree(folder)
            total -= size


def _is_unused(folder: Path) -> bool:
    try:
        _lock_in_use(folder, fcntl.LOCK_EX | fcntl.LOCK_NB).close()
    except BlockingIOError:
        return False
    return True


def _lock_in_use(folder: Path, kind: int) -> IO[bytes]:
    file = open(folder / "in_use", "ab")  # noqa: SIM115  the lock lives as long as the file is open
    try:
        fcntl.flock(file, kind)
    except OSError:
        file.close()
        raise
    return file


@contextmanager
def _lock_file(path: Path, kind: int) -> Iterator[None]:
    with open(path, "ab") as file:
        fcntl.flock(file, kind)
        yield
