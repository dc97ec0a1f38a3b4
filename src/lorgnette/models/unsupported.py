"""Models that people name but that no family here has: why they cannot be trained. Needs no torch."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Kind:
    """names: a pattern for names without their owner. model_types: in config.json."""

    names: str
    model_types: tuple[str, ...]
    reason: str


_KINDS = (
    _Kind(r"qwen[\d.]*-omni\b.*", ("qwen2_5_omni", "qwen3_omni_moe"), "it also hears and speaks"),
    _Kind(r"(qwen4-exp|qwen3\.8-flash-next)\b.*", ("qwen4_exp",), "its indexed attention has no code here"),
    _Kind(r"qwen[\d.]*-vl-(embedding|reranker)\b.*", (), "it writes no answers"),
    _Kind(r"qwen-vl\b.*", ("qwen",), "transformers has no code for it"),
    _Kind(r"qwen[\d.]*-(audio|asr|tts)\b.*", ("qwen2_audio", "qwen3_asr"), "it is a model of sound"),
    _Kind(r"qwen-image\b.*", (), "it draws images"),
    # Every model from 3.5 on reads images.
    _Kind(
        r"(qwen(1\.5|2|2\.5|3)?-(?!vl\b)|qwq\b).*",
        ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"),
        "it reads no images",
    ),
)


def explain_name(name: str) -> str | None:
    """Why the model of this name, which has no owner, cannot be trained; None if the name does not tell."""
    return next((kind.reason for kind in _KINDS if re.fullmatch(kind.names, name, re.IGNORECASE)), None)


def explain_model_type(model_type: object) -> str | None:
    """Why a model with this `model_type` in config.json cannot be trained; None if it is unknown."""
    return next((kind.reason for kind in _KINDS if model_type in kind.model_types), None)
