"""Names of models on the hubs: those of the families, and those that cannot be trained here. Needs no torch."""

import difflib
import re

from lorgnette.models import unsupported
from lorgnette.models.family import ModelSize
from lorgnette.models.registry import FAMILIES

_OWNER = "Qwen"
_INSTRUCT = "-instruct"
_MIN_SIMILARITY = 0.85
_QUANTIZED = re.compile(
    r"(.+?)-(?:fp8|nvfp4|awq|gptq\S*|gguf|int[48]\S*|w4a16\S*|bnb-8bit|[2-8]bit|mlx\S*)", re.IGNORECASE
)
"""A name and the end that says how the weights are stored."""
_NF4 = re.compile(r"(.+?)-(?:unsloth-)?bnb-4bit", re.IGNORECASE)
"""The same for weights in bitsandbytes' NF4, which are supported."""
_SIZED = re.compile(r"(qwen\d(?:\.\d)?)\W*(vl)?\W*(?:(\d+(?:\.\d+)?)b\b\W*(.*))?", re.IGNORECASE)
"""A name: the family's version, whether it is a VL, the size in billions, and what follows."""


def find_hub_name(name: str) -> str | None:
    """OWNER/NAME of a known model, in any letter case; None if it is none.

    name: with or without the owner and `-Instruct`. A model that has the name itself comes first.
    """
    owner, _, own_name = name.rpartition("/")
    return _list_short_names().get(own_name.lower()) if owner.lower() in ("", _OWNER.lower()) else None


def find_size(name: str) -> ModelSize | None:
    """What is known about the model OWNER/NAME; None if it is no known one."""
    return next((size for family in FAMILIES.values() for size in family.sizes if name in size.names), None)


def suggest_hub_names(name: str) -> list[str]:
    """The known models that a name without owner may mean.

    The one with the most similar name; for a size that does not exist the nearest smaller and larger one; for the name
    of a family alone all its sizes, the smallest first.
    """
    if plain := find_unquantized_name(name):
        return [plain]
    if typed := _SIZED.fullmatch(name):
        sizes = _list_sizes(typed)
        if typed[3] is None:
            return [model for _, model in sizes]
        size = float(typed[3])
        if all(size != other for other, _ in sizes):
            smaller, larger = ([m for other, m in sizes if sign * (other - size) > 0] for sign in (-1, 1))
            return smaller[-1:] + larger[:1]
    known = {_simplify(short): model for short, model in _list_short_names().items()}
    nearest = difflib.get_close_matches(_simplify(name), known, n=1, cutoff=_MIN_SIMILARITY)
    return [known[match] for match in nearest]


def find_unquantized_name(name: str) -> str | None:
    """The model whose weights are in NF4 under this name, by the name alone; None if it does not look like one."""
    owner, slash, own_name = name.rpartition("/")
    match = _NF4.fullmatch(own_name)
    return (find_hub_name(match[1]) or f"{owner}{slash}{match[1]}") if match else None


def explain_unsupported_name(name: str) -> str | None:
    """Why the model of this name cannot be trained; None if the name does not tell."""
    owner, _, own_name = name.rpartition("/")
    if (match := _QUANTIZED.fullmatch(own_name)) and not _NF4.fullmatch(own_name):
        model = find_hub_name(match[1])
        return f"its weights are quantized{f'; those of {model} are not' if model else ''}"
    return unsupported.explain_name(own_name) if owner.lower() in ("", _OWNER.lower()) else None


def _list_short_names() -> dict[str, str]:
    """Lower-case name without owner → OWNER/NAME."""
    models = [name for family in FAMILIES.values() for name in family.hub_names]
    names = {model.partition("/")[2].lower(): model for model in models}
    return {name.removesuffix(_INSTRUCT): model for name, model in names.items()} | names


def _list_sizes(family: re.Match[str]) -> list[tuple[float, str]]:
    """(size in billions, OWNER/NAME of the usual model), the smallest first. family: a match of _SIZED."""
    found: dict[str, tuple[float, str]] = {}
    for model in (name for each in FAMILIES.values() for name in each.hub_names):
        short = model.partition("/")[2].lower().removesuffix(_INSTRUCT)
        match = _SIZED.fullmatch(short)
        is_usual = match and match[3] and re.fullmatch(r"(a\d+b)?", match[4])
        if match and is_usual and (match[1], match[2]) == (family[1].lower(), family[2] and family[2].lower()):
            found.setdefault(short, (float(match[3]), model))
    return sorted(found.values())


def _simplify(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
