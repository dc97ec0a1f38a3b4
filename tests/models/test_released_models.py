"""A name is found as people type it, and a name that is nearly one is corrected."""

import pytest

from lorgnette.models.registry import FAMILIES
from lorgnette.models.released_models import (
    explain_unsupported_name,
    find_hub_name,
    find_unquantized_name,
    suggest_hub_names,
)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("Qwen3-VL-4B", "Qwen/Qwen3-VL-4B-Instruct"),
        ("qwen3-vl-4b-thinking", "Qwen/Qwen3-VL-4B-Thinking"),
        ("Qwen2.5-VL-7B", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("qwen/Qwen3-VL-30B-A3B", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
        ("QWEN3.5-4B", "Qwen/Qwen3.5-4B"),
        ("Qwen2-VL-2B", "Qwen/Qwen2-VL-2B"),  # a model of this name exists
        ("me/Qwen3-VL-4B", None),
        ("Qwen3-VL-3B", None),
    ],
)
def test_a_known_model_is_found(typed: str, found: str | None) -> None:
    assert find_hub_name(typed) == found


def test_every_model_is_found_by_its_own_name() -> None:
    for family in FAMILIES.values():
        for name in family.hub_names:
            assert find_hub_name(name) == find_hub_name(name.partition("/")[2].upper()) == name
            assert explain_unsupported_name(name) is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("qwen3vl-4b", ["Qwen3-VL-4B-Instruct"]),
        ("Qwen2-VL-2B-Instuct", ["Qwen2-VL-2B-Instruct"]),
        ("qwen2.5vl:7b", ["Qwen2.5-VL-7B-Instruct"]),
        ("my-model", []),
        # Sizes that do not exist.
        ("qwen3-vl-3b", ["Qwen3-VL-2B-Instruct", "Qwen3-VL-4B-Instruct"]),
        ("Qwen3-VL-7B-Instruct", ["Qwen3-VL-4B-Instruct", "Qwen3-VL-8B-Instruct"]),
        ("qwen2.5-vl-1b", ["Qwen2.5-VL-3B-Instruct"]),
        ("qwen3.5-500b", ["Qwen3.5-397B-A17B"]),
        # Families.
        ("Qwen2.5-VL", [f"Qwen2.5-VL-{size}B-Instruct" for size in (3, 7, 32, 72)]),
        ("qwen3vl", [f"Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "30B-A3B", "32B", "235B-A22B")]),
        ("qwen3.6", ["Qwen3.6-27B", "Qwen3.6-35B-A3B"]),
    ],
)
def test_the_nearest_names_are_suggested(typed: str, meant: list[str]) -> None:
    assert suggest_hub_names(typed) == [f"Qwen/{name}" for name in meant]


def test_quantized_models_are_explained() -> None:
    whole = "its weights are quantized; those of Qwen/Qwen3-VL-4B-Instruct are not"
    assert explain_unsupported_name("Qwen3-VL-4B-Instruct-FP8") == whole
    assert explain_unsupported_name("mlx-community/Qwen9-VL-1B-4bit") == "its weights are quantized"
    assert explain_unsupported_name("me/Qwen3-8B") is None


def test_the_name_of_nf4_weights_tells_their_base() -> None:
    for name in ("unsloth/Qwen3-VL-4B-Instruct-unsloth-bnb-4bit", "Qwen3-VL-4B-Instruct-bnb-4bit"):
        assert explain_unsupported_name(name) is None
        assert find_unquantized_name(name) == "Qwen/Qwen3-VL-4B-Instruct"
        assert suggest_hub_names(name) == ["Qwen/Qwen3-VL-4B-Instruct"]
    assert find_unquantized_name("me/Cats-bnb-4bit") == "me/Cats"
    assert find_unquantized_name("Qwen/Qwen3-VL-4B-Instruct") is None
