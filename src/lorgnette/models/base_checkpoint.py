"""A checkpoint's folder, looked at before any weight is read: family, files, revision, fingerprint.

Needs no torch.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.models.qwen2_vl.family import Family, find_family

_SAMPLE_BYTES = 256
_MAX_HEADER_BYTES = 100_000_000
"""Bytes: the format's own limit."""
_LFS_POINTER = b"version https://git-lfs"
_HINT = "download the checkpoint again, whole"


@dataclass(frozen=True, slots=True)
class BaseCheckpoint:
    """A checkpoint that has all its files."""

    folder: Path
    family: Family
    weight_files: tuple[Path, ...]

    @classmethod
    def from_folder(cls, folder: Path) -> "BaseCheckpoint":
        """Raises LorgnetteError for a folder that is missing, has no weights, misses a shard or has one that was cut
        short, or whose model_type is not supported."""
        config = folder / "config.json"
        if not config.is_file():
            raise LorgnetteError(
                "no such checkpoint" if not folder.exists() else "not a checkpoint: config.json is missing",
                where=str(folder),
                hint="name a folder that holds config.json and model.safetensors, OWNER/NAME on a hub, or `demo`",
            )
        try:
            family = find_family(json.loads(config.read_text(encoding="utf-8")).get("model_type"), str(config))
        except (ValueError, AttributeError) as error:
            raise LorgnetteError(f"config.json cannot be read: {error}", where=str(config), hint=_HINT) from None
        return cls(folder, family, _find_complete_weight_files(folder))

    @property
    def fingerprint(self) -> str:
        """A hash that other weights do not share: of every file's header (names, shapes, types, places) and of samples
        of every tensor. Milliseconds, where hashing 4 GB takes seconds."""
        digest = hashlib.sha256()
        for path in self.weight_files:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = file.read(min(length, path.stat().st_size))
                digest.update(header)
                for start, end in _read_tensor_spans(header):
                    for at in (start, (start + end) // 2, max(start, end - _SAMPLE_BYTES)):
                        file.seek(8 + length + at)
                        digest.update(file.read(min(_SAMPLE_BYTES, end - at)))
        return digest.hexdigest()

    @property
    def revision(self) -> str | None:
        """The hub's commit, where the folder lies in a hub's cache (…/snapshots/COMMIT)."""
        folder = self.folder.resolve()
        return folder.name if folder.parent.name == "snapshots" else None


def find_truncation(path: Path) -> str | None:
    """What keeps a safetensors file from being whole, in words, from its header and its size alone; None: nothing that
    those tell."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(len(_LFS_POINTER))
        length = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(length) if length <= _MAX_HEADER_BYTES else b""
    if not size:
        return "is empty"
    if start == _LFS_POINTER:
        return "is a Git LFS pointer and not the file itself: `git lfs pull` fetches it"
    if length > _MAX_HEADER_BYTES:
        return None  # no safetensors file at all
    if size < 8 or len(header) < length:
        return f"is cut short: {size} bytes are there, not its whole header"
    whole = 8 + length + max((end for _, end in _read_tensor_spans(header)), default=0)
    return f"is cut short: {size} of {whole} bytes are there" if size < whole else None


def _read_tensor_spans(header: bytes) -> list[tuple[int, int]]:
    """Where every tensor of a safetensors file lies: first byte and the one behind its last, from the header's end."""
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
        return [(int(start), int(end)) for start, end in ends]
    except (ValueError, AttributeError, KeyError, TypeError):
        return []  # a broken file: loading it says so


def _find_complete_weight_files(folder: Path) -> tuple[Path, ...]:
    files = _list_weight_files(folder)
    faults = [f"{path.name} {fault}" for path in files if (fault := find_truncation(path))]
    if faults:
        raise LorgnetteError(f"weights cannot be loaded: {'; '.join(faults)}", where=str(folder), hint=_HINT)
    return files


def _list_weight_files(folder: Path) -> tuple[Path, ...]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise LorgnetteError("checkpoint has no weights: model.safetensors is missing", where=str(folder), hint=_HINT)
    try:
        shards = sorted(
            {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LorgnetteError(f"weight index cannot be read: {error!r}", where=str(index), hint=_HINT) from None
    if not shards:
        raise LorgnetteError("weight index names no file", where=str(index), hint=_HINT)
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise LorgnetteError(f"weights are missing: {', '.join(missing)}", where=str(folder), hint=_HINT)
    return tuple(shards)
