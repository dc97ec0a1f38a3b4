"""Selects the engine of a training, and what its examples share. Needs no torch: `plan` uses it too."""

from collections.abc import Mapping
from typing import Any

from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.models.quantization import require_bitsandbytes, select_quantization
from lorgnette.models.registry import find_family, find_unsupported_feature
from lorgnette.planning.memory import EngineName


def select_engine(
    settings: Settings, hf_config: Mapping[str, Any], *, on_gpu: bool | None = None
) -> tuple[EngineName, str | None]:
    """(engine, reason): the reason is given for the reference engine.

    on_gpu: None if nobody has looked yet; it then runs on one if the settings allow it. Raises UsageError for
    engine=fast if the fast engine cannot train this model; for NF4 if none can, or if the reference engine would and
    bitsandbytes is not installed; for train.fully_shard=true if the layers cannot be cut.
    """
    _check_experts(settings, hf_config)
    if on_gpu is None:
        on_gpu = settings.device in ("auto", "cuda")
    engine, reason = _select_engine(settings, hf_config, on_gpu)
    has_nf4 = select_quantization(settings.quantization, hf_config) is not None
    if engine == "reference" and has_nf4:
        require_bitsandbytes()
    family = find_family(hf_config.get("model_type"))
    if settings.train.fully_shard is True and (has_nf4 or (engine == "reference" and not family.can_pack)):
        what = "NF4 weights are" if has_nf4 else f"{family.title} in the reference engine is"
        hint = "use train.fully_shard=auto"
        raise UsageError(f"{what} not cut over several GPUs", where="train.fully_shard=true", hint=hint)
    return engine, reason


def _select_engine(settings: Settings, hf_config: Mapping[str, Any], on_gpu: bool) -> tuple[EngineName, str | None]:
    if settings.engine == "reference":
        return "reference", "as requested"
    reason = None
    if settings.lora.parts != ("language",):
        reason = "the fast engine does not train the vision tower (lora.parts)"
    elif feature := find_unsupported_feature(hf_config):
        reason = f"the fast engine does not run this model: {feature}"
    elif settings.device == "mps":
        reason = "the fast engine does not run on MPS, and nobody has tested the reference engine there"
    if settings.engine == "fast" and reason is not None:
        raise UsageError(reason, where="engine=fast", hint="use engine=auto")
    if settings.engine == "auto" and not on_gpu and settings.device != "mps":
        reason = "on a CPU"
    return ("reference", reason) if reason else ("fast", None)


def _check_experts(settings: Settings, hf_config: Mapping[str, Any]) -> None:
    family = find_family(hf_config.get("model_type"))
    if family.expert_linears and select_quantization(settings.quantization, hf_config):
        message = f"NF4 would leave the experts as they are, and they are most of {family.title}'s weights"
        hint = f"use {'quantization=null' if settings.quantization else 'its checkpoint without quantization'}"
        raise UsageError(message, where="quantization=nf4", hint=f"{hint}, or a model without experts")


def select_prefix_sharing(settings: Settings, engine: EngineName) -> bool:
    """Whether the examples of a micro-batch share prefixes.

    With dropout each example has its own masks, so only examples grouped by image share.
    """
    has_own_masks = settings.lora.dropout and not settings.data.group_by_image
    return engine == "fast" and not has_own_masks
