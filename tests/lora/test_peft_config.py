"""adapter_config.json is read with every value checked, and no regular expression of it runs for long."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from lorgnette.config import TARGET_MODULES
from lorgnette.errors import LorgnetteError
from lorgnette.lora import peft_config
from lorgnette.lora.peft_config import (
    CONFIG_FILE,
    SUPPORTED_VALUES,
    WITHOUT_EFFECT,
    build_pattern_lookup,
    find_bad_pattern,
    list_unknown_options,
    read_peft_config,
)
from lorgnette.models.registry import FAMILIES

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
MODULES = [f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(28)]


def write(folder: Path, config: Any) -> Path:
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder


def test_every_option_of_peft_is_known() -> None:
    """The installed PEFT has no option whose effect on the answers lorgnette does not know."""
    options = set(LoraConfig.__dataclass_fields__)
    assert options - SUPPORTED_VALUES.keys() - WITHOUT_EFFECT == set()
    assert list_unknown_options(LoraConfig(target_modules=["q_proj"]).to_dict()) == []
    assert list_unknown_options(PLAIN | {"newer": {"a": 1}, "unused": None}) == ["newer"]


@pytest.mark.parametrize("value", [4, 300, "all", ["q_proj"], {"q_proj": 4}, None, True, 0.5])
def test_values_that_peft_takes(tmp_path: Path, value: Any) -> None:
    """Each kind of value is taken where PEFT takes it."""
    taken = {
        "r": (int,), "lora_alpha": (int, float), "bias": (str, type(None)), "rank_pattern": (dict, type(None)),
        "modules_to_save": (list, type(None)), "use_dora": (bool, type(None)), "layers_to_transform": (int, type(None)),
        "lora_dropout": (float, type(None)),
    }  # fmt: skip
    for option, types in taken.items():
        write(tmp_path, PLAIN | {option: value})
        if type(value) in types:
            assert read_peft_config(tmp_path)[option] == value
        else:
            with pytest.raises(LorgnetteError, match=f"{CONFIG_FILE}: {option} is .*, not "):
                read_peft_config(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', not LORA"),
        ({"r": 0}, "r is 0, not a whole number from 1 to 65536"),
        ({"r": -4}, "r is -4, not a whole number"),
        ({"r": 10**9}, "r is 1000000000, not a whole number"),
        ({"r": "4"}, "r is '4', not a whole number"),
        ({"lora_alpha": 0}, "lora_alpha is 0, not a finite number other than 0"),
        ({"lora_alpha": 1e39}, "lora_alpha is 1e+39, not a finite number"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is {'q_proj': 0}, not an object with values"),
        ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern is {'q_proj': '8'}, not"),
        ({"target_modules": [1]}, "target_modules is [1], not a list of names or a regular expression"),
        ({"target_modules": None}, "it has no target_modules"),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path is ['a'], not text"),
        ({"base_model_name_or_path": "\u001b[31m"}, "base_model_name_or_path is '\\x1b[31m', not text"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication repeats layers of the base model"),
        ({"megatron_config": {"a": 1}}, "megatron_config imports another program; lorgnette does not load it"),
        ({"trainable_token_indices": {"embed_tokens": [-1]}}, "trainable_token_indices is {'embed_tokens': [-1]}, not"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        read_peft_config(write(tmp_path, PLAIN | changed))
    assert caught.value.message.startswith(f"{CONFIG_FILE}: {message}")
    assert caught.value.hint
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: str) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(PLAIN).replace("8", alpha))
    with pytest.raises(LorgnetteError, match=r"lora_alpha is .*, not a finite number"):
        read_peft_config(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "{" * 100_000, '{"r": 1, "r": 2}'])
def test_an_unreadable_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(LorgnetteError, match=f"{CONFIG_FILE} cannot be read"):
        read_peft_config(tmp_path)


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"target_modules": "(a*)*b|(.*)*proj!"}, "target_modules"),
        ({"exclude_modules": r"(\w+\.?)+!"}, "exclude_modules"),
        ({"rank_pattern": {"(.*.*)*x": 4}}, "rank_pattern"),
        ({"modules_to_save": ["([a-z_.0-9]+)+!!"]}, "modules_to_save"),
        ({"target_modules": ["q_proj"], "layers_pattern": "(.*)*!"}, "layers_pattern"),
    ],
)
def test_an_expression_that_takes_years_is_stopped(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], option: str
) -> None:
    monkeypatch.setattr(peft_config, "_MATCH_SECONDS", 0.4)
    start = time.monotonic()
    reason = find_bad_pattern(PLAIN | changed, MODULES)
    assert reason == f"{option} is a regular expression that takes more than 0.4 seconds"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("expression", ["(", "[", "a" * 20_000, "(" * 500 + ")" * 500, "a{99999999999999999999}"])
def test_what_is_no_expression_is_named(expression: str) -> None:
    assert str(find_bad_pattern(PLAIN | {"target_modules": expression}, MODULES)).startswith("target_modules ")


@pytest.mark.parametrize("parts", [("language",), ("language", "vision", "merger")])
def test_our_own_expression_needs_no_second_process(monkeypatch: pytest.MonkeyPatch, parts: Any) -> None:
    monkeypatch.setattr(peft_config, "_try_matching", lambda *_: pytest.fail("a process was started"))
    expression = FAMILIES["qwen2_vl"].build_target_pattern(TARGET_MODULES, parts)
    assert find_bad_pattern(PLAIN | {"target_modules": expression, "rank_pattern": {"q_proj": 4}}, MODULES) is None


def test_an_expression_of_peers_is_taken() -> None:
    """Many repetitions, but quick: the shape that Unsloth writes."""
    expression = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|k_proj|down_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|down_proj)))"
    )
    assert find_bad_pattern(PLAIN | {"target_modules": expression}, MODULES) is None


def test_the_lookup_finds_what_peft_finds() -> None:
    from peft.utils.other import get_pattern_key

    patterns = {"q_proj": 1, r"layers\.1\..*": 2, "model.language_model.layers.0.mlp.up_proj": 3, ".*_proj": 4}
    lookup: Callable[[str], Any] = build_pattern_lookup(patterns, 9)
    names = [*MODULES[:3], *(f"model.language_model.layers.{i}.mlp.up_proj" for i in range(2)), "x"]
    keys = [get_pattern_key(list(patterns), name) for name in names]
    assert [lookup(name) for name in names] == [patterns.get(key, 9) for key in keys]
    assert lookup("x") == 9
    assert not re.match("x", MODULES[0])
