"""What is known about models that cannot be trained is true of no family's models."""

import pytest

from lorgnette.models.registry import FAMILIES
from lorgnette.models.unsupported import explain_model_type, explain_name


@pytest.mark.parametrize(
    ("name", "model_type", "reason"),
    [
        ("Qwen3-Omni-30B-A3B-Instruct", "qwen3_omni_moe", "hears"),
        ("qwen2.5-omni-7b", "qwen2_5_omni", "hears"),
        ("Qwen4-Exp", "qwen4_exp", "indexed attention"),
        ("Qwen3-8B", "qwen3", "no images"),
        ("Qwen2.5-7B-Instruct", "qwen2", "no images"),
    ],
)
def test_a_kind_has_its_reason(name: str, model_type: str, reason: str) -> None:
    assert reason in (explain_name(name) or "")
    assert explain_name(name) == explain_model_type(model_type)


def test_no_family_is_among_them() -> None:
    for family in FAMILIES.values():
        assert explain_model_type(family.model_type) is None
        assert not any(explain_name(name.partition("/")[2]) for name in family.hub_names)
