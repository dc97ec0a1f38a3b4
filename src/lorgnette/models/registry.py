"""All model families: every folder here is one. A new family is one more folder. Needs no torch."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import read_config
from lorgnette.models import model_config
from lorgnette.models.family import Family
from lorgnette.models.model_config import (
    LABELS_PER_CHUNK,
    HfConfig,
    TextConfig,
    VisionConfig,
    WeightShapes,
    find_absurd_value,
)
from lorgnette.models.unsupported import explain_model_type

__all__ = ["LABELS_PER_CHUNK", "HfConfig", "TextConfig", "VisionConfig", "WeightShapes", "find_absurd_value"]
_FOLDERS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/facts.py"))
FAMILIES: dict[str, Family] = {name: import_module(f"lorgnette.models.{name}.facts").FAMILY for name in _FOLDERS}


def find_family(model_type: object, where: str = "config.json") -> Family:
    """The family of a checkpoint. Raises LorgnetteError if it is not supported."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = explain_model_type(model_type)
    message = f"model_type {model_type!r} is not supported{f': {reason}' if reason else ''}"
    raise LorgnetteError(message, where=where, hint="`lorgnette model list` lists the models that are supported")


def read_family(folder: Path) -> Family:
    """The family of a model's folder. Raises LorgnetteError if its config.json is missing, broken or not supported."""
    path = folder / "config.json"
    return find_family(read_config(path, "use the whole checkpoint").get("model_type"), str(path))


def import_positions(model_type: str) -> ModuleType:
    """positions.py of a family: compute_position_ids."""
    return import_module(f"lorgnette.models.{model_type}.positions")


def parse_configs(hf_config: HfConfig) -> tuple[TextConfig, VisionConfig]:
    """The sizes in config.json. Raises LorgnetteError if the fast engine does not support this model."""
    if reason := find_unsupported_feature(hf_config):
        message = f"the fast engine does not support this model: {reason}"
        raise LorgnetteError(message, where="config.json", hint="use engine=reference")
    return parse_sizes(hf_config)


def parse_sizes(hf_config: HfConfig) -> tuple[TextConfig, VisionConfig]:
    """The sizes in config.json, also of a model that only the reference engine runs. `has_known_sizes` checks."""
    module = _import_config(hf_config)
    return module.parse_text_config(hf_config), module.parse_vision_config(hf_config)


def has_known_sizes(hf_config: HfConfig) -> bool:
    """Whether config.json has every size."""
    try:
        parse_sizes(hf_config)
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError):
        return False
    return True


def find_contradiction(hf_config: HfConfig) -> str | None:
    """Why no engine can run this model, or None. Sizes that are not known are not looked at."""
    return model_config.find_first_reason(_list_contradictions(hf_config))


def _list_contradictions(hf_config: HfConfig) -> Iterator[str]:
    if not (hf_config.get("text_config") or _import_config(hf_config).CAN_BE_FLAT):
        yield "text_config is missing"  # transformers would build the largest model of the family
    if model_config.has_sliding_layers(model_config.get_text_section(hf_config)):
        yield "sliding-window attention is not supported"
    if has_known_sizes(hf_config):
        yield from model_config.list_contradictions(*parse_sizes(hf_config))


def find_unsupported_feature(hf_config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model, or None if it can. The reference engine may still run it."""
    reason: str | None = _import_config(hf_config).find_unsupported_feature(hf_config)
    return reason


def estimate_num_values(hf_config: HfConfig) -> int:
    """About how many weights' values the model of config.json has, from sizes that `find_absurd_value` accepts."""
    return model_config.estimate_num_values(hf_config, _import_config(hf_config).VISION_WIDTH_KEY)


def _import_config(hf_config: HfConfig) -> ModuleType:
    """config.py of the model's family."""
    return import_module(f"lorgnette.models.{find_family(hf_config.get('model_type')).model_type}.config")
