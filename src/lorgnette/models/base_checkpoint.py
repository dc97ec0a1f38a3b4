"""The folder of a base model, before any weight is read: family, files, revision, fingerprint. Needs no torch."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lorgnette.errors import LorgnetteError
from lorgnette.io.folder_kind import explain_folder, find_folder_kind
from lorgnette.io.parse import TensorEntry, read_config, read_tensor_entries
from lorgnette.models.family import Family, convert_weight_name
from lorgnette.models.quantization import (
    Quantization,
    find_unsupported_quantization,
    is_part,
    list_quantized_modules,
    list_stored_modules,
    select_quantization,
)
from lorgnette.models.registry import (
    HfConfig,
    TextConfig,
    estimate_num_values,
    find_absurd_value,
    find_contradiction,
    find_family,
    parse_configs,
)

FLOATING_DTYPES = ("BF16", "F16", "F32", "F64")
_SAMPLE_BYTES = 256
_MAX_NEW_VALUES = 2**26
"""Values that a model may have beyond its files': loading it then says which weights are missing."""
DOWNLOAD_AGAIN = "download the checkpoint again, whole"


@dataclass(frozen=True, slots=True)
class BaseCheckpoint:
    """A checkpoint with all its files, or without its weights.

    quantization: how a model that is loaded from it holds its weights; None: in the dtype of the run.
    """

    folder: Path
    family: Family
    weight_files: tuple[Path, ...]
    quantization: Quantization | None = None

    @classmethod
    def from_folder(cls, folder: Path, *, needs_weights: bool = True) -> "BaseCheckpoint":
        """Raises LorgnetteError for missing or truncated files, or an unsupported model_type.

        needs_weights: otherwise no file of weights is looked for.
        """
        config = folder / "config.json"
        if not config.is_file():
            raise explain_folder(folder, "model", lacks="config.json")
        hf_config = read_config(config, DOWNLOAD_AGAIN)
        family = find_family(hf_config.get("model_type"), str(config))
        if absurd := find_absurd_value(hf_config):
            raise LorgnetteError(f"config.json cannot be used: {absurd}", where=str(config), hint=DOWNLOAD_AGAIN)
        if contradiction := find_contradiction(hf_config):
            hint = f"{DOWNLOAD_AGAIN}, or use another one"
            raise LorgnetteError(f"config.json cannot be used: {contradiction}", where=str(config), hint=hint)
        if reason := find_unsupported_quantization(hf_config):
            hint = "use a checkpoint without quantization, or one in bitsandbytes' NF4"
            raise LorgnetteError(f"this model is not supported: {reason}", where=str(config), hint=hint)
        quantization = select_quantization(None, hf_config)
        if not needs_weights:
            return cls(folder, family, (), quantization)
        files = _list_weight_files(folder)
        faults, num_values = _find_faults(files, is_quantized=quantization is not None)
        if faults:
            message = f"weights cannot be loaded: {'; '.join(faults)}"
            raise LorgnetteError(message, where=str(folder), hint=DOWNLOAD_AGAIN)
        if (needed := estimate_num_values(hf_config)) > 2 * num_values + _MAX_NEW_VALUES:
            message = f"config.json describes a model of {needed:,} values, its files have {num_values:,}"
            raise LorgnetteError(message, where=str(folder), hint=DOWNLOAD_AGAIN)
        return cls(folder, family, files, quantization)

    def quantize(self, setting: Literal["nf4"] | None) -> "BaseCheckpoint":
        """The checkpoint whose model holds its weights as a setting says. Weights that are stored in NF4 stay so."""
        return replace(self, quantization=select_quantization(setting, self.load_hf_config()))

    def load_hf_config(self) -> HfConfig:
        """config.json."""
        return read_config(self.folder / "config.json", DOWNLOAD_AGAIN)

    def load_text_config(self) -> TextConfig:
        """Raises LorgnetteError if the fast engine does not support this model."""
        return parse_configs(self.load_hf_config())[0]

    def list_weights(self) -> list[str]:
        """The names of all weights in the files, as transformers names them now."""
        return [name for name in self._list_tensors() if not is_part(name)]

    def list_quantized_modules(self) -> list[str]:
        """The modules whose weight a model that is loaded from it holds in NF4, as transformers names them now."""
        return list_quantized_modules(self.quantization, self._list_tensors()) if self.quantization else []

    def build_bitsandbytes_options(self) -> dict[str, Any]:
        """The options of transformers' BitsAndBytesConfig that quantize, or leave quantized, these modules alone."""
        assert self.quantization is not None
        names = "|".join(re.escape(name) for name in self.list_quantized_modules())
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.quantization.kind,
            "bnb_4bit_use_double_quant": self.quantization.has_double_quantization,
            "llm_int8_skip_modules": [f"(?!(?:{names})$).*"],  # regular expressions: all modules but these
        }

    def _list_tensors(self) -> list[str]:
        return [convert_weight_name(name) for path in self.weight_files for name in read_tensor_entries(path)]

    @property
    def fingerprint(self) -> str:
        """A hash of every file's header (names, shapes, dtypes, offsets) and of samples of every tensor.

        Takes milliseconds; hashing all of 4 GB takes seconds.
        """
        digest = hashlib.sha256()
        for path in self.weight_files:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                digest.update(file.read(length))
                for _, _, start, end in read_tensor_entries(path).values():
                    for offset in (start, (start + end) // 2, max(start, end - _SAMPLE_BYTES)):
                        file.seek(offset)
                        digest.update(file.read(min(_SAMPLE_BYTES, end - offset)))
        return digest.hexdigest()

    @property
    def revision(self) -> str | None:
        """The hub's commit if the folder is in a hub's cache (…/snapshots/COMMIT), else None."""
        folder = self.folder.resolve()
        return folder.name if folder.parent.name == "snapshots" else None


def _find_faults(files: Iterable[Path], *, is_quantized: bool) -> tuple[list[str], int]:
    """(faults, number of values) of a checkpoint's files. is_quantized: as config.json says."""
    faults, num_values, has_nf4 = [], 0, False
    for path in files:
        try:
            entries = read_tensor_entries(path)
            num_values += _count_values(entries)
            has_nf4 = has_nf4 or bool(list_stored_modules(entries))
            faults += _list_integer_weights(entries, is_quantized=is_quantized)
        except LorgnetteError as error:
            faults.append(f"{path.name} {error.message}")
    if is_quantized and not has_nf4 and not faults:
        faults.append("config.json says that they are in NF4 (quantization_config), and none is")
    return faults, num_values


def _count_values(entries: Mapping[str, TensorEntry]) -> int:
    """The values of all weights. NF4 has two in a byte."""
    sizes = {name: math.prod(entry.shape) for name, entry in entries.items() if not is_part(name)}
    return sum(sizes.values()) + sum(sizes.get(f"{module}.weight", 0) for module in list_stored_modules(entries))


def _list_integer_weights(entries: Mapping[str, TensorEntry], *, is_quantized: bool) -> list[str]:
    """The first of them that is not NF4: transformers would take its integers for values."""
    quantized = {f"{module}.weight" for module in list_stored_modules(entries)} if is_quantized else set[str]()
    kinds = [
        (name, entry.dtype)
        for name, entry in entries.items()
        if entry.dtype not in FLOATING_DTYPES and not (is_quantized and is_part(name)) and name not in quantized
    ]
    why = "and is no NF4 weight" if is_quantized else "without quantization_config in config.json"
    return [f"{name} is stored as {dtype}, {why}" for name, dtype in kinds[:1]]


def _list_weight_files(folder: Path) -> tuple[Path, ...]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if find_folder_kind(folder) == "pickled model":
        raise explain_folder(folder, "model")
    if not index.is_file():
        message = "checkpoint has no weights: model.safetensors is missing"
        raise LorgnetteError(message, where=str(folder), hint=DOWNLOAD_AGAIN)
    names = read_config(index, DOWNLOAD_AGAIN).get("weight_map")
    names = names.values() if isinstance(names, dict) else [None]
    if not all(isinstance(name, str) and name and name == Path(name).name != ".." for name in names):
        raise LorgnetteError("weight index has no weight_map of file names", where=str(index), hint=DOWNLOAD_AGAIN)
    shards = sorted({folder / name for name in names})
    if not shards:
        raise LorgnetteError("weight index names no file", where=str(index), hint=DOWNLOAD_AGAIN)
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise LorgnetteError(f"weights are missing: {', '.join(missing)}", where=str(folder), hint=DOWNLOAD_AGAIN)
    return tuple(shards)
