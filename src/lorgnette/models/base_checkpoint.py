"""A checkpoint's folder, looked at before any weight is read: family, files, revision, fingerprint.

Needs no torch.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.models.qwen2_vl.family import Family, family_of

_SAMPLE_BYTES = 256
_LARGEST_HEADER = 100_000_000
"""Bytes: the format's own limit."""
_POINTER = b"version https://git-lfs"
_REMEDY = "download the checkpoint again, whole"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that has all its files."""

    folder: Path
    family: Family
    weights: tuple[Path, ...]

    @classmethod
    def at(cls, folder: Path) -> "Checkpoint":
        """Raises LorgnetteError for a folder that is missing, has no weights, misses a shard or has one that was cut
        short, or whose model_type is not supported."""
        config = folder / "config.json"
        if not config.is_file():
            raise LorgnetteError(
                "no such checkpoint" if not folder.exists() else "not a checkpoint: config.json is missing",
                where=str(folder),
                remedy="name a folder that holds config.json and model.safetensors, OWNER/NAME on a hub, or `demo`",
            )
        try:
            family = family_of(json.loads(config.read_text(encoding="utf-8")).get("model_type"), str(config))
        except (ValueError, AttributeError) as error:
            raise LorgnetteError(f"config.json cannot be read: {error}", where=str(config), remedy=_REMEDY) from None
        return cls(folder, family, _weight_files(folder))

    @property
    def fingerprint(self) -> str:
        """A hash that other weights do not share: of every file's header (names, shapes, types, places) and of samples
        of every tensor. Milliseconds, where hashing 4 GB takes seconds."""
        digest = hashlib.sha256()
        for path in self.weights:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = file.read(min(length, path.stat().st_size))
                digest.update(header)
                for start, end in _places(header):
                    for at in (start, (start + end) // 2, max(start, end - _SAMPLE_BYTES)):
                        file.seek(8 + length + at)
                        digest.update(file.read(min(_SAMPLE_BYTES, end - at)))
        return digest.hexdigest()

    @property
    def revision(self) -> str | None:
        """The hub's commit, where the folder lies in a hub's cache (…/snapshots/COMMIT)."""
        folder = self.folder.resolve()
        return folder.name if folder.parent.name == "snapshots" else None


def unwhole(path: Path) -> str | None:
    """What keeps a safetensors file from being whole, in words, from its header and its size alone; None: nothing that
    those tell."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(len(_POINTER))
        length = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(length) if length <= _LARGEST_HEADER else b""
    if not size:
        return "is empty"
    if start == _POINTER:
        return "is a Git LFS pointer and not the file itself: `git lfs pull` fetches it"
    if length > _LARGEST_HEADER:
        return None  # no safetensors file at all
    if size < 8 or len(header) < length:
        return f"is cut short: {size} bytes are there, not its whole header"
    whole = 8 + length + max((end for _, end in _places(header)), default=0)
    return f"is cut short: {size} of {whole} bytes are there" if size < whole else None


def _places(header: bytes) -> list[tuple[int, int]]:
    """Where every tensor of a safetensors file lies: first byte and the one behind its last, from the header's end."""
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
        return [(int(start), int(end)) for start, end in ends]
    except (ValueError, AttributeError, KeyError, TypeError):
        return []  # a broken file: loading it says so


def _weight_files(folder: Path) -> tuple[Path, ...]:
    files = _named_files(folder)
    faults = [f"{path.name} {fault}" for path in files if (fault := unwhole(path))]
    if faults:
        raise LorgnetteError(f"weights cannot be loaded: {'; '.join(faults)}", where=str(folder), remedy=_REMEDY)
    return files


def _named_files(folder: Path) -> tuple[Path, ...]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise LorgnetteError(
            "checkpoint has no weights: model.safetensors is missing", where=str(folder), remedy=_REMEDY
        )
    try:
        shards = sorted(
            {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LorgnetteError(f"weight index cannot be read: {error!r}", where=str(index), remedy=_REMEDY) from None
    if not shards:
        raise LorgnetteError("weight index names no file", where=str(index), remedy=_REMEDY)
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise LorgnetteError(f"weights are missing: {', '.join(missing)}", where=str(folder), remedy=_REMEDY)
    return tuple(shards)
