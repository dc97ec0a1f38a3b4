"""Each check says what it found."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorgnette.config import ProcessorSettings
from lorgnette.inference.loading import ModelSpec
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.verification.checks import check_peft_result, describe_image_size, list_vllm_options
from lorgnette.verification.peft_check import AnswerComparison, Distance, PeftResult


def make_distance(**changed: Any) -> Distance:
    same: dict[str, Any] = {
        "num_tokens": 8, "kl": 0.0, "total_variation": 0.0, "num_argmax_changes": 0, "max_logprob_difference": 0.0,
    }  # fmt: skip
    return Distance(**same | changed)


FAR = make_distance(kl=0.5, total_variation=0.25, num_argmax_changes=3, max_logprob_difference=2.0)


def run_checks(effect: Distance, error: Distance) -> dict[str, tuple[bool | None, str]]:
    answer = AnswerComparison(base="a", adapter="b", merged="b", adapter_effect=effect, merge_error=error)
    names = {"saved_names": ("a",), "expected_names": ("a",)}
    results = check_peft_result(PeftResult(**names, answers=(answer,), versions={"peft": "1"}), None)
    return {result.check: (result.passed, result.message) for result in results}


def test_effect_and_merge() -> None:
    results = run_checks(FAR, make_distance())
    assert results["effect"] == (
        True,
        "the adapter changes the base model's answers: 25.00% of the probability per token (KL 0.5 nats), "
        "another most likely token at 3 of 8",
    )
    assert results["merged"][0] is True
    passed, message = run_checks(make_distance(), make_distance())["effect"]
    assert (passed, message.startswith("the adapter does not change the base model's answers")) == (False, True)
    passed, message = run_checks(FAR, FAR)["merged"]
    assert (passed, message.startswith("the merged model answers differently: ")) == (False, True)


def test_names_that_do_not_match() -> None:
    [result] = check_peft_result(PeftResult(saved_names=("a", "c"), expected_names=("a", "b")), None)
    assert (result.check, result.passed) == ("loading", False)
    assert result.message == "1 of 2 adapter tensors match the model; these do not: b, c"
    [result] = check_peft_result(PeftResult(load_error="KeyError: 'x'\n  more"), None)
    assert (result.passed, result.message) == (False, "PEFT cannot load it: KeyError: 'x'")


def test_an_adapter_that_cannot_be_merged_passes() -> None:
    answer = AnswerComparison(base="a", adapter="b", merged=None, adapter_effect=FAR, merge_error=None)
    names = {"saved_names": ("a",), "expected_names": ("a",), "answers": (answer,)}
    for failure, obstacle, message in (
        ("no\nway", None, "it cannot be merged: no"),
        (None, "it cannot be merged: so", "it cannot be merged: so"),
    ):
        result = check_peft_result(PeftResult(**names, merge_failure=failure), None, obstacle)[-1]
        assert (result.check, result.passed, result.message) == ("merged", None, message)


def test_image_size_of_other_programs(saved: Path, tiny: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(saved, tmp_path / "adapter")
    (adapter / "lorgnette.json").unlink()
    spec = ModelSpec.from_names(str(tiny), adapter, Terminal())
    assert spec.metadata is not None
    assert describe_image_size(spec) == "resize them as in training; the adapter's folder does not say how"
    metadata = spec.metadata.model_copy(update={"fingerprint": "0"})  # an adapter of lorgnette's
    native = Processor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))
    assert describe_image_size(replace(spec, metadata=metadata, processor=native)) == (
        """--mm-processor-kwargs '{"min_pixels": 3136, "max_pixels": 23520}'"""
    )


def test_vllm_gets_the_options_of_the_template() -> None:
    options = {name: list_vllm_options(family) for name, family in FAMILIES.items()}
    assert options["qwen2_vl"] == options["qwen3_vl"] == []
    assert options["qwen3_5"] == ["--default-chat-template-kwargs", '{"enable_thinking": false}']
