"""Which engine a training uses, and why."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CONTROL_IDS, build_config

from lorgnette import config
from lorgnette.config import Settings
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.errors import UsageError
from lorgnette.models import quantization
from lorgnette.models.registry import FAMILIES


@pytest.fixture
def hf_config(tiny: Path) -> dict[str, Any]:
    return json.loads((tiny / "config.json").read_text())


def settings(*words: str) -> Settings:
    return config.load_settings(None, ["model=m", "data=d", *words])


def test_auto_selects_fast_on_a_gpu_and_reference_elsewhere(hf_config: dict[str, Any]) -> None:
    assert select_engine(settings(), hf_config, on_gpu=True) == ("fast", None)
    assert select_engine(settings(), hf_config, on_gpu=False) == ("reference", "on a CPU")
    engine, reason = select_engine(settings("device=mps"), hf_config, on_gpu=False)
    assert engine == "reference"
    assert "MPS, and nobody has tested" in reason
    with pytest.raises(UsageError, match="the fast engine does not run on MPS"):
        select_engine(settings("device=mps", "engine=fast"), hf_config, on_gpu=False)


def test_a_requested_engine_is_used(hf_config: dict[str, Any]) -> None:
    assert select_engine(settings("engine=reference"), hf_config, on_gpu=True) == ("reference", "as requested")
    assert select_engine(settings("engine=fast"), hf_config, on_gpu=False) == ("fast", None)


def test_a_trained_tower_needs_the_reference_engine(hf_config: dict[str, Any]) -> None:
    engine, reason = select_engine(settings("lora.parts=vision"), hf_config, on_gpu=True)
    assert engine == "reference"
    assert reason is not None
    assert "vision tower" in reason
    with pytest.raises(UsageError, match="vision tower"):
        select_engine(settings("engine=fast", "lora.parts=vision"), hf_config, on_gpu=True)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_fast_engine_runs_what_it_has_networks_for(model_type: str) -> None:
    """A family without is trained by the reference engine, with the reason; engine=fast is refused with it."""
    hf_config = build_config(model_type, dict.fromkeys(CONTROL_IDS.values(), 0), 100, is_tied=False)
    engine, reason = select_engine(settings(), hf_config, on_gpu=True)
    if model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        assert (engine, reason) == ("fast", None)
        hf_config |= {"hidden_act": "gelu", "text_config": {**hf_config.get("text_config", {}), "hidden_act": "gelu"}}
        engine, reason = select_engine(settings(), hf_config, on_gpu=True)
        assert str(reason).endswith("'gelu'")
    assert engine == "reference"
    assert str(reason).startswith("the fast engine does not run this model: ")
    with pytest.raises(UsageError, match=re.escape(str(reason))):
        select_engine(settings("engine=fast"), hf_config, on_gpu=True)


@pytest.mark.parametrize("engine", ["auto", "fast", "reference"])
def test_experts_are_not_quantized(engine: str) -> None:
    """NF4 would leave them, and the model would fit no smaller GPU than before."""
    hf_config = build_config("qwen3_vl_moe", dict.fromkeys(CONTROL_IDS.values(), 0), 100, is_tied=False)
    with pytest.raises(UsageError, match="NF4 would leave the experts as they are"):
        select_engine(settings(f"engine={engine}", "quantization=nf4"), hf_config, on_gpu=True)


def test_only_the_reference_engine_needs_bitsandbytes(
    hf_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    stored = hf_config | {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    for words, config_ in ((["quantization=nf4"], hf_config), ([], stored)):
        assert select_engine(settings(*words), config_, on_gpu=True) == ("fast", None)
        # Nobody has looked for a GPU: a container may have one without nvidia-smi.
        assert select_engine(settings(*words), config_) == ("fast", None)
        for refused, on_gpu in (
            ([], False),
            (["device=cpu"], None),
            (["device=mps"], None),
            (["engine=reference"], True),
        ):
            with pytest.raises(UsageError, match="needs bitsandbytes"):
                select_engine(settings(*words, *refused), config_, on_gpu=on_gpu)
            assert select_engine(settings(*refused), hf_config, on_gpu=on_gpu)[0] == "reference"


def test_dropout_prevents_prefix_sharing_unless_grouped_by_image() -> None:
    assert select_prefix_sharing(settings("lora.dropout=0"), "fast")
    assert not select_prefix_sharing(settings("lora.dropout=0.1"), "fast")
    assert select_prefix_sharing(settings("lora.dropout=0.1", "data.group_by_image=true"), "fast")
    assert not select_prefix_sharing(settings("lora.dropout=0"), "reference")


def test_layers_that_cannot_be_cut_are_refused(hf_config: dict[str, Any]) -> None:
    """Of train.fully_shard=auto they stay whole."""
    recurrent = hf_config | {"model_type": "qwen3_5"}
    for word, model, message in (
        ("quantization=nf4", hf_config, "NF4 weights"), ("engine=reference", recurrent, "in the reference engine"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"{message}.* not cut .* train.fully_shard=true"):
            select_engine(settings(word, "train.fully_shard=true"), model, on_gpu=True)
        for choice in ("auto", "false"):
            select_engine(settings(word, f"train.fully_shard={choice}"), model, on_gpu=True)
    assert select_engine(settings("train.fully_shard=true"), hf_config, on_gpu=True) == ("fast", None)
    reference = settings("engine=reference", "train.fully_shard=true")
    assert select_engine(reference, hf_config, on_gpu=True)[0] == "reference"
