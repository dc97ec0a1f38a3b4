"""Which engine a training takes, and what its examples share. No torch: the plan asks too."""

from collections.abc import Mapping
from typing import Any

from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.models.qwen2_vl.config import find_unsupported_feature
from lorgnette.planning.memory import EngineName


def select_engine(settings: Settings, config: Mapping[str, Any], *, on_gpu: bool) -> tuple[EngineName, str | None]:
    """The engine; of the reference engine, why. config: the checkpoint's.

    Raises UsageError where engine=fast is asked for and cannot be.
    """
    if settings.engine == "reference":
        return "reference", "as asked for"
    live = settings.lora.parts != ("language",)
    why = "the vision tower is trained, and features are live" if live else find_unsupported_feature(config)
    if settings.engine == "fast" and why is not None:
        raise UsageError(f"the fast engine cannot do this: {why}", where="engine=fast", hint="use engine=auto")
    if settings.engine == "auto" and not on_gpu:
        why = "on a CPU"
    return ("reference", why) if why else ("fast", None)


def select_prefix_sharing(settings: Settings, engine: EngineName) -> bool:
    """What the examples of a pass share; under dropout, which every example draws for itself, only what they are
    grouped for."""
    return engine != "reference" and (not settings.lora.dropout or settings.data.group_by_image)
