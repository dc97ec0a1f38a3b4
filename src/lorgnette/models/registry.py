"""All model families. A new family is a folder beside `qwen2_vl` and a name in FAMILIES. Needs no torch."""

from lorgnette.errors import LorgnetteError
from lorgnette.models.family import Family
from lorgnette.models.qwen2_vl.config import HfConfig, TextConfig, VisionConfig
from lorgnette.models.qwen2_vl.family import QWEN2_VL

FAMILIES = {family.model_type: family for family in (QWEN2_VL,)}


def find_family(model_type: str | None, where: str = "config.json") -> Family:
    """The family of a checkpoint. Raises LorgnetteError if it is not supported."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise LorgnetteError(
        f"model_type {model_type!r} is not supported", where=where, hint=f"supported: {', '.join(FAMILIES)}"
    )


def parse_configs(hf_config: HfConfig) -> tuple[TextConfig, VisionConfig]:
    """The sizes in config.json. Raises LorgnetteError if the fast engine does not support this model."""
    module = find_family(hf_config.get("model_type")).config_module
    return module.TextConfig.from_hf_config(hf_config), module.VisionConfig.from_hf_config(hf_config)


def find_unsupported_feature(hf_config: HfConfig) -> str | None:
    """Why the fast engine cannot run this model, or None if it can. The reference engine may still run it."""
    reason: str | None = find_family(hf_config.get("model_type")).config_module.find_unsupported_feature(hf_config)
    return reason
