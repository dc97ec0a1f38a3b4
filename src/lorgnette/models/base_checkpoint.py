"""The folder of a base model, before any weight is read: family, files, revision, fingerprint. Needs no torch."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.models.family import Family
from lorgnette.models.registry import HfConfig, TextConfig, find_family, parse_configs

_SAMPLE_BYTES = 256
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit."""
_LFS_POINTER = b"version https://git-lfs"
DOWNLOAD_AGAIN = "download the checkpoint again, whole"


@dataclass(frozen=True, slots=True)
class BaseCheckpoint:
    """A checkpoint with all its files."""

    folder: Path
    family: Family
    weight_files: tuple[Path, ...]

    @classmethod
    def from_folder(cls, folder: Path) -> "BaseCheckpoint":
        """Raises LorgnetteError for missing or truncated files, or an unsupported model_type."""
        config = folder / "config.json"
        if not config.is_file():
            message = "not a checkpoint: config.json is missing" if folder.exists() else "no such checkpoint"
            hint = "name a folder that holds config.json and model.safetensors, OWNER/NAME on a hub, or `demo`"
            raise LorgnetteError(message, where=str(folder), hint=hint)
        try:
            family = find_family(json.loads(config.read_text(encoding="utf-8")).get("model_type"), str(config))
        except (ValueError, AttributeError) as error:
            message = f"config.json cannot be read: {error}"
            raise LorgnetteError(message, where=str(config), hint=DOWNLOAD_AGAIN) from None
        files = _list_weight_files(folder)
        faults = [f"{path.name} {fault}" for path in files if (fault := find_truncation(path))]
        if faults:
            message = f"weights cannot be loaded: {'; '.join(faults)}"
            raise LorgnetteError(message, where=str(folder), hint=DOWNLOAD_AGAIN)
        return cls(folder, family, files)

    def load_hf_config(self) -> HfConfig:
        """config.json."""
        config: HfConfig = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return config

    def load_text_config(self) -> TextConfig:
        """Raises LorgnetteError if the fast engine does not support this model."""
        return parse_configs(self.load_hf_config())[0]

    @property
    def fingerprint(self) -> str:
        """A hash of every file's header (names, shapes, dtypes, offsets) and of samples of every tensor.

        Takes milliseconds; hashing all of 4 GB takes seconds.
        """
        digest = hashlib.sha256()
        for path in self.weight_files:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = file.read(min(length, path.stat().st_size))
                digest.update(header)
                for start, end in _read_tensor_spans(header):
                    for offset in (start, (start + end) // 2, max(start, end - _SAMPLE_BYTES)):
                        file.seek(8 + length + offset)
                        digest.update(file.read(min(_SAMPLE_BYTES, end - offset)))
        return digest.hexdigest()

    @property
    def revision(self) -> str | None:
        """The hub's commit if the folder is in a hub's cache (…/snapshots/COMMIT), else None."""
        folder = self.folder.resolve()
        return folder.name if folder.parent.name == "snapshots" else None


def find_truncation(path: Path) -> str | None:
    """Why a safetensors file is incomplete, judged by its header and size alone; None if they show nothing wrong."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(len(_LFS_POINTER))
        length = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(length) if length <= _MAX_HEADER_BYTES else b""
    if not size:
        return "is empty"
    if start == _LFS_POINTER:
        return "is a Git LFS pointer, not the file itself: run `git lfs pull`"
    if length > _MAX_HEADER_BYTES:
        return None  # not a safetensors file
    if size < 8 or len(header) < length:
        return f"is truncated: its header is longer than its {size} bytes"
    full_size = 8 + length + max((end for _, end in _read_tensor_spans(header)), default=0)
    return f"is truncated: it has {size} of {full_size} bytes" if size < full_size else None


def _read_tensor_spans(header: bytes) -> list[tuple[int, int]]:
    """(start, end) of every tensor in a safetensors file, in bytes behind the header."""
    try:
        tensors = json.loads(header)
        offsets = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
        return [(int(start), int(end)) for start, end in offsets]
    except (ValueError, AttributeError, KeyError, TypeError):
        return []  # a broken file: loading it will raise


def _list_weight_files(folder: Path) -> tuple[Path, ...]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if not index.is_file():
        message = "checkpoint has no weights: model.safetensors is missing"
        raise LorgnetteError(message, where=str(folder), hint=DOWNLOAD_AGAIN)
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({folder / name for name in names})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LorgnetteError(f"weight index cannot be read: {error!r}", where=str(index), hint=DOWNLOAD_AGAIN) from None
    if not shards:
        raise LorgnetteError("weight index names no file", where=str(index), hint=DOWNLOAD_AGAIN)
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise LorgnetteError(f"weights are missing: {', '.join(missing)}", where=str(folder), hint=DOWNLOAD_AGAIN)
    return tuple(shards)
