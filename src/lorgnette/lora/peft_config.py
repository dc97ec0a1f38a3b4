"""PEFT's `adapter_config.json`: read, with every value checked that PEFT computes or searches with. Needs no torch.

Who gives an adapter away also gives this file away. PEFT allocates what it asks for and runs its regular expressions.
"""

import json
import re
import reprlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.io.folder_kind import explain_folder
from lorgnette.io.parse import read_config

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Of every tensor in the weights file."""
COPY_HINT = "copy the adapter's folder again, or take a checkpoint of its run"
ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output layer."""
MAX_RANK = 65_536
_MAX_NAMES, _MAX_PATTERNS = 20_000, 1000
_MAX_PATTERN = 10_000
_MAX_FLOAT32 = 3.4028234e38
MAX_UNUSED_RANK = 1024
"""Of `r` and `rank_pattern`, if no tensor has it."""
_MATCH_SECONDS = 5.0
SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "fan_in_fan_out": (False, None), "use_dora": (False, None),
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "layers_to_transform": (None,),
    "layer_replication": (None,), "modules_to_save": (None, []), "lora_bias": (False, None),
    "target_parameters": (None, []), "trainable_token_indices": (None,), "exclude_modules": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others change the frozen weights too
    "alora_invocation_tokens": (None,), "arrow_config": (None,), "kasa_config": (None,), "monteclora_config": (None,),
    "use_bdlora": (False, None), "use_qalora": (False, None), "velora_config": (None,), "megatron_config": (None,),
    "ensure_weight_tying": (False, None),
}  # fmt: skip
"""PEFT's settings with the values that the fast engine supports, the first being PEFT's default.

Some change the result but not the tensors' names and shapes (activated LoRA, PiSSA, OLoRA).
"""
WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "layers_pattern",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version",
    "qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
    "lora_dtype", "lorap_emb_lr", "lorap_lr_ratio",
})  # fmt: skip
"""Settings that lorgnette reads or that, with the options above at their defaults, change no answer. The last three are
ms-swift's; they belong to its optimizer."""
_NOT_LOADED = {
    "layer_replication": "repeats layers of the base model",
    "megatron_config": "imports another program",
    "arrow_config": "needs other adapters",
}


def read_peft_config(adapter: Path) -> dict[str, Any]:
    """The settings in an adapter's `adapter_config.json`.

    Raises LorgnetteError if the file is missing or broken, or asks for what cannot be loaded.
    """
    path = adapter / CONFIG_FILE
    if not path.is_file():
        raise explain_folder(adapter, "adapter", lacks=CONFIG_FILE)
    config = read_config(path, COPY_HINT)
    if fault := next(_list_faults(config), None):
        raise LorgnetteError(f"{CONFIG_FILE}: {fault}", where=str(path), hint=COPY_HINT)
    return config


def find_unsupported_option(config: Mapping[str, Any]) -> str | None:
    """The first option of adapter_config.json that the fast engine does not support, or None."""
    options = (name for name, supported in SUPPORTED_VALUES.items() if config.get(name, supported[0]) not in supported)
    return next(options, None) or next(iter(list_unknown_options(config)), None)


def list_unknown_options(config: Mapping[str, Any]) -> list[str]:
    """The options that are set and that neither lorgnette nor PEFT 0.21 knows. PEFT ignores them."""
    return [name for name, value in config.items() if value and name not in SUPPORTED_VALUES.keys() | WITHOUT_EFFECT]


def is_base_changed(config: Mapping[str, Any]) -> bool:
    """Whether PEFT changes the base model's own weights when it loads the adapter, so that the model without the
    adapter is not the base model any more."""
    is_bias_trained = config.get("bias", "none") != "none"
    init = config.get("init_lora_weights", True)
    return is_bias_trained or init not in SUPPORTED_VALUES["init_lora_weights"] or bool(config.get("kasa_config"))


def build_pattern_lookup(patterns: Mapping[str, Any] | None, default: Any) -> Callable[[str], Any]:
    """The values of `rank_pattern` or `alpha_pattern` by a module's name, as PEFT finds them."""
    compiled = [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in (patterns or {}).items()]
    return lambda module: next((value for expression, value in compiled if expression.match(module)), default)


def find_bad_pattern(config: Mapping[str, Any], modules: Iterable[str]) -> str | None:
    """Why a regular expression of the configuration cannot be used with these modules, or None.

    Python cannot stop a search, and some expressions take years (`(a*)*b`). So those that are not plainly quick are
    tried in a process that can be killed. After that they are safe to use with these names.
    """
    expressions = list(_list_expressions(config))
    for option, _, expression in expressions:
        if len(expression) > _MAX_PATTERN:
            return f"{option} has a regular expression of {len(expression)} characters"
        try:
            re.compile(expression)
        except (re.error, RecursionError, OverflowError) as error:
            return f"{option} is no regular expression: {_shorten(str(error))}"
    slow = {expression: option for option, own, expression in expressions if not _is_quick(own)}
    # A search that fails late takes longest: each name also with an end that nothing expects.
    names = [name for module in modules for name in (module, f"{module}!")]
    if slow and not _try_matching(list(slow), names):
        return f"{next(iter(slow.values()))} is a regular expression that takes more than {_MATCH_SECONDS:g} seconds"
    return None


def _list_expressions(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(option, its own expression, the regular expression that PEFT makes of it)"""
    for option in ("target_modules", "exclude_modules"):
        if isinstance(value := config.get(option), str):
            yield option, value, rf"(?:{value})\Z"
    for option in ("rank_pattern", "alpha_pattern"):
        yield from ((option, key, rf"(.*\.)?({key})$") for key in config.get(option) or {})
    for name in config.get("modules_to_save") or ():
        yield "modules_to_save", name, rf"(^|.*\.){name}($|\..*)"
    layers = config.get("layers_pattern") or ()
    for name in [layers] if isinstance(layers, str) else layers:
        yield "layers_pattern", name, rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\."


def _is_quick(expression: str) -> bool:
    """Few repetitions, none of a group: at most length³ steps. A name has about 60 characters."""
    num_repeats = len(re.findall(r"[*+{]|(?<!\()\?", expression))
    return num_repeats <= 3 and not re.search(r"\)[*+?{]|\(\?P=|\\[1-9]", expression)


def _try_matching(expressions: list[str], names: list[str]) -> bool:
    code = "import json, re, sys; xs, names = json.load(sys.stdin); [re.match(x, name) for x in xs for name in names]"
    command = [sys.executable, "-I", "-S", "-c", code]
    try:
        text = json.dumps([expressions, names])
        subprocess.run(command, input=text, text=True, timeout=_MATCH_SECONDS, capture_output=True, check=True)  # noqa: S603
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return False
    return True


def _list_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the values, each as a clause."""
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {_shorten(config.get('peft_type'))}, not LORA"
    for option, effect in _NOT_LOADED.items():
        if config.get(option):
            yield f"{option} {effect}; lorgnette does not load it"
    for option, (is_valid, expected) in _VALID.items():
        if not is_valid(config.get(option)):
            yield f"{option} is {_shorten(config.get(option))}, not {expected}"
    if config.get("target_modules") is None and not config.get("target_parameters"):
        yield "it has no target_modules"


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and 0 < abs(value) <= _MAX_FLOAT32


def _is_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.isprintable())


def _is_name_list(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) <= _MAX_NAMES and all(isinstance(name, str) for name in value)
    )


def _is_name_list_or_expression(value: Any) -> bool:
    return isinstance(value, str) or _is_name_list(value)


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_index_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_NAMES and all(type(i) is int and i >= 0 for i in value)


def _is_token_choice(value: Any) -> bool:
    lists = value.values() if isinstance(value, dict) else [value]
    return value is None or all(map(_is_index_list, lists))


def _are_values(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        value is None
        or (isinstance(value, dict) and len(value) <= _MAX_PATTERNS and all(map(is_valid, value.values())))
    )


def _is_dropout(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


_RANK, _ALPHA, _FLAG = f"a whole number from 1 to {MAX_RANK}", "a finite number other than 0", "true or false"
_NAMES, _EXPRESSION = "a list of names", "a list of names or a regular expression"
_VALID: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, _RANK),
    "lora_alpha": (_is_alpha, _ALPHA),
    "lora_dropout": (_is_dropout, "a number from 0 to 1"),
    "rank_pattern": (_are_values(_is_rank), f"an object with values, each {_RANK}"),
    "alpha_pattern": (_are_values(_is_alpha), f"an object with values, each {_ALPHA}"),
    "target_modules": (_is_name_list_or_expression, _EXPRESSION),
    "exclude_modules": (_is_name_list_or_expression, _EXPRESSION),
    "layers_pattern": (_is_name_list_or_expression, _EXPRESSION),
    "modules_to_save": (lambda x: _is_name_list(x) and len(x or ()) <= _MAX_PATTERNS, _NAMES),
    "target_parameters": (_is_name_list, _NAMES),
    "layers_to_transform": (lambda x: x is None or type(x) is int or _is_index_list(x), "a list of layers"),
    "trainable_token_indices": (_is_token_choice, "a list of tokens"),
    "bias": (lambda x: x in (None, "none", "all", "lora_only"), "none, all or lora_only"),
    "base_model_name_or_path": (_is_text, "text"),
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"), (_is_flag, _FLAG)),
}
"""Option → (whether a value is one that PEFT takes, what it takes)."""


def _shorten(value: Any) -> str:
    return reprlib.repr(value)
