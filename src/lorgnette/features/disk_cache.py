"""Image features on disk, so that a second run need not load the vision tower.

    ~/.cache/lorgnette/features/SET/     one set per tower, processing, dtype and kind of device
        rows     features, row after row, as in memory: the merger's output and every level of deepstack
        index    56 bytes per image: key (`read_key`) · first row · number of rows · crc32 of the rows ·
                 number of entries that were written with it and follow · crc32 of these
        lock     locked while appending          in_use   locked, shared, by every process that has the set open

Files only grow, rows before index: a killed process leaves rows without an index entry, and the next one overwrites
them. The images of one call of the tower are in the index together or not at all: a call with some of them rounds
otherwise, and a resumed run must equal one that was not killed. Two processes may open a set; an image that both encode
is stored once. Rows with a wrong checksum are computed again, and stored again behind the others.
"""

import fcntl
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError
from lorgnette.features.cache_folder import ENTRY, evict_oldest, get_features_folder, lock_file
from lorgnette.io.atomic import open_no_follow
from lorgnette.io.crc32 import combine_crc32
from lorgnette.io.read_at import read_at
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import parse_configs
from lorgnette.models.weight_loader import index_tensors
from lorgnette.processing.image_processor import ImageProcessor

FORMAT = 3
MAX_BYTES = 40 * 2**30
"""Size of all sets together when one is opened (the oldest are deleted), and of one set."""
MIN_FREE_BYTES = 2 * 2**30
"""Space on the disk that stays free."""
_SAMPLE_BYTES = 4096


def open_disk_cache(
    checkpoint: BaseCheckpoint, image_processor: ImageProcessor, device: torch.device, dtype: torch.dtype
) -> "FeatureDiskCache":
    """The set for this tower, processing, dtype and kind of device.

    Raises LorgnetteError if the checkpoint is broken or not supported, or the folder cannot be written.
    """
    _, vision = parse_configs(checkpoint.load_hf_config())
    processing = [
        image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size,
        image_processor.image_mean, image_processor.image_std, PIL.__version__,
    ]  # fmt: skip
    # The sizes too: equal weights in other windows, or with levels behind other blocks, give other features.
    identity = [FORMAT, hash_tower(checkpoint), asdict(vision), processing, str(dtype), device.type]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    return FeatureDiskCache(get_features_folder(), name, vision.feature_width, dtype)


def open_exchange(width: int, dtype: torch.dtype, world: World) -> "FeatureDiskCache | None":
    """A set through which the ranks of a machine exchange features once, in a temporary folder. Every rank calls it.

    None if the folder cannot be written.
    """
    own = None
    if world.is_local_main:
        with suppress(OSError):
            own = tempfile.mkdtemp(prefix="lorgnette-features-")
    folder = world.gather_objects(own)[world.rank - world.local_rank]
    return folder and FeatureDiskCache(Path(folder), "set", width, dtype, is_temporary=True)


def hash_tower(checkpoint: BaseCheckpoint) -> str:
    """A hash of the vision tower's weights: names, shapes, dtypes and samples of each, whatever the files' layout.

    Takes milliseconds; hashing all bytes takes a second.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(index_tensors(checkpoint).items()):
        if not name.startswith("model.visual."):
            continue
        digest.update(f"{name} {entry.shape} {entry.dtype}".encode())
        with open(entry.path, "rb") as file:
            for offset in (entry.start, (entry.start + entry.end) // 2, max(entry.start, entry.end - _SAMPLE_BYTES)):
                file.seek(offset)
                digest.update(file.read(min(_SAMPLE_BYTES, entry.end - offset)))
    return digest.hexdigest()


class FeatureDiskCache:
    """One set of features: [rows, width] for each image."""

    def __init__(self, root: Path, name: str, width: int, dtype: torch.dtype, *, is_temporary: bool = False) -> None:
        """Raises LorgnetteError if the folder cannot be created or opened. is_temporary: nobody opens it later."""
        self.is_temporary = is_temporary
        self._root, self._folder, self._width, self._dtype = root, root / name, width, dtype
        self._row_bytes = width * dtype.itemsize
        try:
            root.mkdir(parents=True, exist_ok=True)
            with lock_file(root / "lock", fcntl.LOCK_EX):
                self._folder.mkdir(exist_ok=True)
                self._in_use_file = lock_file(self._folder / "in_use", fcntl.LOCK_SH)
                os.utime(self._folder / "in_use")
                evict_oldest(root, self._folder, MAX_BYTES)
            self._index, self._index_bytes_read = dict[bytes, tuple[int, int, int]](), 0
            self._damaged: list[bytes] = []
            self._rows_file: _OpenFile | None = None
            self._read_set()
        except OSError as error:
            raise self._build_error(f"cannot be opened: {error.strerror or error}") from error

    @property
    def is_empty(self) -> bool:
        return not self._index

    @property
    def num_damaged(self) -> int:
        """Images whose features could not be read, or did not have their checksum."""
        return len(self._damaged)

    def refresh(self) -> None:
        """See what other processes have stored since. Raises LorgnetteError if it cannot be read."""
        try:
            self._read_set()
        except OSError as error:
            raise self._build_error(f"cannot be read: {error.strerror or error}") from error

    def get(self, key: bytes, *, is_checked: bool = False) -> Float[Tensor, "P C"] | None:
        """The image's features as a view of the file; None if they were not stored at the last `refresh`.

        None also if they are damaged; `append` then stores them again. is_checked: another rank has just read or
        written them, so that their checksum needs no second look.
        """
        first, rows, crc = self._index.get(key, (0, 0, 0))
        if not rows or self._map is None or (first + rows) * self._row_bytes > len(self._map):
            return None
        count, offset = rows * self._width, first * self._row_bytes
        with memoryview(self._map) as view, view[offset : offset + rows * self._row_bytes] as stored:
            is_damaged = not is_checked and zlib.crc32(stored) != crc
        if is_damaged:
            self.forget(key)
            return None
        return torch.frombuffer(self._map, dtype=self._dtype, count=count, offset=offset).view(rows, self._width)

    def locate(self, key: bytes) -> "StoredFeatures | None":
        """Where the image's features are in the file; None if they were not stored at the last `refresh`, or the file
        cannot be opened any more.

        Their checksum is not compared: another rank has just read or written them, or `find_damage` does.
        """
        first, rows, crc = self._index.get(key, (0, 0, 0))
        if not rows or self._map is None or (first + rows) * self._row_bytes > len(self._map):
            return None
        if self._rows_file is None:
            try:
                self._rows_file = _OpenFile(self._folder / "rows")
            except OSError:  # somebody has deleted the folder
                return None
        return StoredFeatures(self._rows_file, first * self._row_bytes, rows, self._width, self._row_bytes, key, crc)

    def forget(self, key: bytes) -> None:
        """Forget features that are damaged; `append` then stores them again."""
        if self._index.pop(key, None) is not None:
            self._damaged.append(key)

    def append(self, features: Mapping[bytes, Float[Tensor, "_ C"]], *, is_synced: bool = True) -> None:
        """Store features from host memory. Raises LorgnetteError if the disk is full or not writable.

        is_synced: wait until the rows are on the disk. Other processes see them in any case; a power failure that
        damages them shows in their checksums.
        """
        stored = [_StoredRows.from_tensor(key, rows.to(self._dtype)) for key, rows in features.items() if len(rows)]
        try:
            with lock_file(self._folder / "lock", fcntl.LOCK_EX):
                self._read_index()
                self._append_rows([rows for rows in stored if rows.key not in self._index], is_synced=is_synced)
        except OSError as error:
            raise self._build_error(f"cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Release the set. Tensors returned by `get` stay valid."""
        self._in_use_file.close()

    def _read_set(self) -> None:
        self._read_index()
        path, self._map = self._folder / "rows", None
        if path.exists() and path.stat().st_size:
            with open(path, "rb") as file:  # copy-on-write, because torch needs writable memory
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        # Rows are written before their entries: where there are none, the file was cut. `append` stores them again.
        num_rows = len(self._map or b"") // self._row_bytes
        self._index = {key: place for key, place in self._index.items() if place[0] + place[1] <= num_rows}

    def remove(self) -> None:
        """Delete a temporary set, once all have it open. Tensors returned by `get` stay valid."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _append_rows(self, stored: Sequence["_StoredRows"], *, is_synced: bool) -> None:
        size = sum(rows.num_rows for rows in stored) * self._row_bytes
        with open(self._folder / "rows", "ab", opener=open_no_follow) as file:
            first = -(-file.tell() // self._row_bytes)  # skip the partial row that a killed process left
            is_too_large = first * self._row_bytes + size > MAX_BYTES
            if is_too_large or shutil.disk_usage(self._folder).free - size < MIN_FREE_BYTES:
                raise self._build_error("is full")
            file.truncate(first * self._row_bytes)
            entries = []
            for num_left, rows in zip(reversed(range(len(stored))), stored, strict=True):
                file.write(rows.content)
                fields = (rows.key, first, rows.num_rows, rows.crc, num_left)
                entries.append(ENTRY.pack(*fields, zlib.crc32(ENTRY.pack(*fields, 0))))
                first += rows.num_rows
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        with open(self._folder / "index", "ab", opener=open_no_follow) as file:
            file.truncate(self._index_bytes_read)
            file.write(b"".join(entries))

    def _read_index(self) -> None:
        """Read the entries that any process added since the last read, up to the last that are complete.

        Entries with a wrong checksum are ignored.
        """
        with open(self._folder / "index", "ab+", opener=open_no_follow) as file:
            file.seek(self._index_bytes_read)
            data = file.read()
        start, group = self._index_bytes_read, dict[bytes, tuple[int, int, int]]()
        length = len(data) // ENTRY.size * ENTRY.size
        for number, (*fields, crc) in enumerate(ENTRY.iter_unpack(data[:length]), start=1):
            if crc == zlib.crc32(ENTRY.pack(*fields, 0)):
                key, first, rows, content_crc, num_left = fields
                group[key] = (first, rows, content_crc)
                if num_left == 0:
                    self._index |= group
                    self._index_bytes_read, group = start + number * ENTRY.size, {}

    def _build_error(self, message: str) -> LorgnetteError:
        hint = "delete the folder above or set XDG_CACHE_HOME to another disk; the run continues without the cache"
        if self.is_temporary:
            hint = "set TMPDIR to another disk; the run continues without the folder"
        return LorgnetteError(f"disk cache of image features {message}", where=str(self._folder), hint=hint)


class _OpenFile:
    """A file to read from, also once it is deleted. It is closed when nobody has this object any more."""

    def __init__(self, path: Path) -> None:
        self.path, self.descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


class StoredFeatures(NamedTuple):
    """Features of an image in the file of a set. offset: bytes; row_bytes: of one row; key: of the image; crc: of the
    features."""

    file: _OpenFile
    offset: int
    num_rows: int
    width: int
    row_bytes: int
    key: bytes
    crc: int

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes

    def read_into(self, out: UInt8[np.ndarray, " B"]) -> None:
        """Fill host memory with their bytes. Raises LorgnetteError if the file cannot be read.

        Touching the pages of a mapped file for the first time would take many times as long.
        """
        try:
            read_at(self.file.descriptor, out.data, self.offset)
        except OSError as error:
            raise self._build_error(error.strerror or str(error)) from error

    def _build_error(self, reason: str) -> LorgnetteError:
        message = f"image features cannot be read again: {reason}"
        return LorgnetteError(message, where=str(self.file.path), hint="delete its folder, and resume the run")


def read_all_into(places: Sequence[StoredFeatures], out: UInt8[np.ndarray, " B"]) -> None:
    """Fill host memory with the features of several images, one after the other. Raises as `StoredFeatures.read_into`.

    Neighbors in the file are read in one call.
    """
    runs = list[StoredFeatures]()
    for place in places:
        if runs and place.offset == runs[-1].offset + runs[-1].num_bytes:
            runs[-1] = runs[-1]._replace(num_rows=runs[-1].num_rows + place.num_rows)
        else:
            runs.append(place)
    start = 0
    for run in runs:
        run.read_into(out[start : start + run.num_bytes])
        start += run.num_bytes


def find_damage(places: Sequence[StoredFeatures], content: UInt8[np.ndarray, " B"]) -> list[int]:
    """Which of these features do not have their checksum. content: as `read_all_into` fills it.

    Features of one size are checked in one call, because each call that leaves Python's lock may wait long to have it
    back. With many sizes `combine_crc32` takes longer than that.
    """
    if len({place.num_rows for place in places}) == 1:
        crc = 0
        for place in places:
            crc = combine_crc32(crc, place.crc, place.num_bytes)
        if zlib.crc32(content.data) == crc:
            return []
    parts = np.split(content, list(accumulate(place.num_bytes for place in places[:-1])))
    return [i for i, (place, part) in enumerate(zip(places, parts, strict=True)) if zlib.crc32(part.data) != place.crc]


class _StoredRows(NamedTuple):
    """The rows of an image as they are stored. Made before the lock is taken, for which other ranks wait."""

    key: bytes
    num_rows: int
    content: memoryview
    crc: int

    @classmethod
    def from_tensor(cls, key: bytes, rows: Float[Tensor, "P C"]) -> "_StoredRows":
        content = rows.contiguous().view(torch.uint8).numpy().data
        return cls(key, len(rows), content, zlib.crc32(content))
