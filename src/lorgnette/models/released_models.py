"""Names of models on the hubs: those of the families, and those that cannot be trained here. Needs no torch."""

import difflib
import re

from lorgnette.models import unsupported
from lorgnette.models.registry import FAMILIES

_OWNER = "Qwen"
_INSTRUCT = "-instruct"
_MIN_SIMILARITY = 0.85
_QUANTIZED = re.compile(
    r"(.+?)-(?:fp8|nvfp4|awq|gptq\S*|gguf|int[48]\S*|w4a16\S*|(?:unsloth-)?bnb-4bit|[2-8]bit|mlx\S*)", re.IGNORECASE
)
"""A name and the end that says how the weights are stored."""


def find_hub_name(name: str) -> str | None:
    """OWNER/NAME of a known model, in any letter case; None if it is none.

    name: with or without the owner and `-Instruct`. A model that has the name itself comes first.
    """
    owner, _, own_name = name.rpartition("/")
    return _list_short_names().get(own_name.lower()) if owner.lower() in ("", _OWNER.lower()) else None


def suggest_hub_name(name: str) -> str | None:
    """The known model whose name is most like this one, which has no owner; None if none is alike."""
    known = {_simplify(short): model for short, model in _list_short_names().items()}
    nearest = difflib.get_close_matches(_simplify(name), known, n=1, cutoff=_MIN_SIMILARITY)
    return known[nearest[0]] if nearest else None


def explain_unsupported_name(name: str) -> str | None:
    """Why the model of this name cannot be trained; None if the name does not tell."""
    owner, _, own_name = name.rpartition("/")
    if match := _QUANTIZED.fullmatch(own_name):
        model = find_hub_name(match[1])
        return f"its weights are quantized{f'; those of {model} are not' if model else ''}"
    return unsupported.explain_name(own_name) if owner.lower() in ("", _OWNER.lower()) else None


def _list_short_names() -> dict[str, str]:
    """Lower-case name without owner → OWNER/NAME."""
    models = [name for family in FAMILIES.values() for name in family.hub_names]
    names = {model.partition("/")[2].lower(): model for model in models}
    return {name.removesuffix(_INSTRUCT): model for name, model in names.items()} | names


def _simplify(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
