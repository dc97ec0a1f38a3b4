"""NF4 weights (QLoRA: Dettmers et al. 2023), in bitsandbytes' format: which matrices have them. Needs no torch.

A matrix [O, I] is one row of O·I values, in blocks of 64. A value is one of 16 levels (4 bits, two in a byte, the first
in the high half) times its block's scale. Double quantization stores the scales in 8 bits too, in blocks of 256.
A file holds the bytes under the matrix's name, and beside it what `PARTS` lists.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from lorgnette.config import TARGET_MODULES
from lorgnette.errors import UsageError
from lorgnette.io.parse import describe_type, shorten
from lorgnette.models.family import name_linear
from lorgnette.models.model_config import HfConfig, find_first_reason, get_text_section

STATE = "quant_state.bitsandbytes__nf4"
"""JSON in bytes: quant_type, blocksize, dtype, shape; nested_blocksize, nested_dtype, nested_offset."""
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", STATE)
"""What stands in a file beside `X.weight`, as `X.weight.absmax`. `nested_…` only with double quantization."""
_LEFT_OUT = "llm_int8_skip_modules"
_PROJECTION = re.compile(
    rf"model\.language_model\.layers\.\d+\.(?:{'|'.join(re.escape(name_linear(target)) for target in TARGET_MODULES)})"
)


@dataclass(frozen=True, slots=True)
class Quantization:
    """NF4 weights of a model.

    is_stored: the checkpoint's files hold them: which modules have them, and whether with double quantization, is what
    the files say of each (`list_stored_modules`). Otherwise the decoder's projections are quantized while they are
    loaded, from their values in the dtype of the run, as transformers and bitsandbytes do it.
    """

    is_stored: bool
    has_double_quantization: bool = True
    kind: Literal["nf4"] = "nf4"


QLORA = Quantization(is_stored=False)
"""What `quantization=nf4` does with a checkpoint that is not quantized."""


def read_quantization(hf_config: HfConfig) -> Quantization | None:
    """How a checkpoint stores its weights; None if it is not quantized, or in a way that is not supported."""
    stored = _find_section(hf_config)
    if stored is None or find_unsupported_quantization(hf_config):
        return None
    return Quantization(is_stored=True, has_double_quantization=bool(stored.get("bnb_4bit_use_double_quant")))


def select_quantization(setting: Literal["nf4"] | None, hf_config: HfConfig) -> Quantization | None:
    """How a run holds the frozen weights: as the checkpoint stores them, or as the setting says."""
    return read_quantization(hf_config) or (QLORA if setting else None)


def find_unsupported_quantization(hf_config: HfConfig) -> str | None:
    """What is quantized in a way that is not supported, in words, or None: `its weights are quantized (gptq)`."""
    stored = _find_section(hf_config)
    if stored is None:
        return None
    if not isinstance(stored, dict):
        return f"quantization_config is {describe_type(stored)}, not an object"
    return find_first_reason(_list_obstacles(stored))


def _list_obstacles(stored: Mapping[str, Any]) -> Iterator[str]:
    method = stored.get("quant_method")
    if method not in (None, "bitsandbytes"):
        yield f"its weights are quantized ({shorten(str(method))})"
    # transformers saves the second name too; "fp4" is its default.
    if not (stored.get("load_in_4bit") or stored.get("_load_in_4bit")):
        is_int8 = stored.get("load_in_8bit") or stored.get("_load_in_8bit")
        yield f"its weights are quantized ({'int8' if is_int8 else 'in an unknown way'})"
    kind, storage = stored.get("bnb_4bit_quant_type", "fp4"), stored.get("bnb_4bit_quant_storage") or "uint8"
    if kind != "nf4":
        yield f"its weights are quantized ({shorten(str(kind))})"
    if storage != "uint8":
        yield f"its 4-bit weights are stored as {shorten(str(storage))}"
    names = stored.get(_LEFT_OUT)
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        yield f"{_LEFT_OUT} is {shorten(repr(names))}, not a list of names"


def list_modules_left_out(hf_config: HfConfig) -> list[str]:
    """The modules that a checkpoint in NF4 leaves as they are, as config.json names them."""
    return (_find_section(hf_config) or {}).get(_LEFT_OUT) or []


def list_quantization_remarks(quantization: Quantization | None) -> list[str]:
    """What a user should know before a training on NF4 weights, in sentences."""
    if quantization is None:
        return []
    source = "as the checkpoint stores them" if quantization.is_stored else "made while they are loaded"
    return [
        f"the decoder's projections are NF4 weights, {source}: without a training such a model answers a little "
        "differently from the one in 16 bits (docs/guides/nf4.md)"
    ]


def require_bitsandbytes() -> None:
    """Raises UsageError if it is not installed. Does not import it."""
    if find_spec("bitsandbytes") is None:
        message = "the reference engine needs bitsandbytes for NF4 weights, which is not installed"
        hint = "pip install bitsandbytes; the fast engine, on an NVIDIA GPU, does not need it"
        raise UsageError(message, where="quantization=nf4", hint=hint)


def list_stored_modules(names: Iterable[str]) -> list[str]:
    """The modules whose weight is stored in NF4. names: of all tensors in a checkpoint's files."""
    end = f".weight.{STATE}"
    return [name.removesuffix(end) for name in names if name.endswith(end)]


def list_quantized_modules(quantization: Quantization, names: Iterable[str]) -> list[str]:
    """The modules of a model that hold NF4 weights. names: of all tensors in its files, as transformers names them."""
    if quantization.is_stored:
        return list_stored_modules(names)
    modules = (name.removesuffix(".weight") for name in names if name.endswith(".weight"))
    return [name for name in modules if _PROJECTION.fullmatch(name)]


def is_part(name: str) -> bool:
    """Whether a tensor of a file belongs to the NF4 weight before it in the name: `X.weight.absmax`."""
    return any(name.endswith(f".weight.{part}") for part in PARTS)


def _find_section(hf_config: HfConfig) -> Any:
    """`quantization_config` of config.json; None without one."""
    sections = (hf_config, get_text_section(hf_config))
    return next((found for section in sections if (found := section.get("quantization_config"))), None)
