"""All model families. A new family is a folder beside the others and a name in FAMILIES. Needs no torch."""

from lorgnette.errors import LorgnetteError
from lorgnette.models import qwen2_vl
from lorgnette.models.family import Family
from lorgnette.models.qwen2_vl.config import LABELS_PER_CHUNK, HfConfig, TextConfig, VisionConfig, WeightShapes

__all__ = ["LABELS_PER_CHUNK", "HfConfig", "TextConfig", "VisionConfig", "WeightShapes"]  # used by other packages
FAMILIES = {family.model_type: family for family in (qwen2_vl.FAMILY,)}


def find_family(model_type: object, where: str = "config.json") -> Family:
    """The family of a checkpoint. Raises LorgnetteError if it is not supported."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    hint = f"supported: {', '.join(FAMILIES)}"
    raise LorgnetteError(f"model_type {model_type!r} is not supported", where=where, hint=hint)


def parse_configs(hf_config: HfConfig) -> tuple[TextConfig, VisionConfig]:
    """The sizes in config.json. Raises LorgnetteError if the fast engine does not support this model."""
    module = find_family(hf_config.get("model_type")).config_module
    configs: tuple[TextConfig, VisionConfig] = module.parse_configs(hf_config)
    return configs


def find_unsupported_feature(hf_config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model, or None if it can. The reference engine may still run it."""
    reason: str | None = find_family(hf_config.get("model_type")).config_module.find_unsupported_feature(hf_config)
    return reason


def find_absurd_value(hf_config: HfConfig) -> str | None:
    """The first value of config.json that no model of the family has, or None. Checked before anything is allocated."""
    reason: str | None = find_family(hf_config.get("model_type")).config_module.find_absurd_value(hf_config)
    return reason


def estimate_num_values(hf_config: HfConfig) -> int:
    """About how many weights' values the model of config.json has, from sizes that `find_absurd_value` accepts."""
    count: int = find_family(hf_config.get("model_type")).config_module.estimate_num_values(hf_config)
    return count
