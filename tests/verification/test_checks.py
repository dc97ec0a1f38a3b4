"""Each check says what it found."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorgnette.config import ProcessorSettings
from lorgnette.inference.loading import ModelSpec
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.verification import checks
from lorgnette.verification.checks import check_peft_result, describe_image_size
from lorgnette.verification.peft_check import AnswerComparison, Distance, NameMatch, PeftResult


def make_distance(**changed: Any) -> Distance:
    same: dict[str, Any] = {
        "num_tokens": 8, "kl": 0.0, "total_variation": 0.0, "num_argmax_changes": 0, "max_logprob_difference": 0.0,
    }  # fmt: skip
    return Distance(**same | changed)


FAR = make_distance(kl=0.5, total_variation=0.25, num_argmax_changes=3, max_logprob_difference=2.0)


def run_checks(effect: Distance, error: Distance) -> dict[str, tuple[bool | None, str]]:
    answer = AnswerComparison(base="a", adapter="b", merged="b", adapter_effect=effect, merge_error=error)
    names = NameMatch(num_matched=56, missing=(), unexpected=())
    results = check_peft_result(PeftResult(names=names, answers=(answer,), versions={"peft": "1"}), None)
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
    def get_message(missing: tuple[str, ...], unexpected: tuple[str, ...]) -> str:
        result = checks._check_names(NameMatch(num_matched=2, missing=missing, unexpected=unexpected))
        assert result.passed is False
        return result.message

    assert get_message(("a", "b"), ()) == "plain PEFT loads 2 of 4 tensors; 2 are missing, such as a"
    assert get_message((), ("c",)) == "plain PEFT loads 2 of 2 tensors; 1 in the file are unknown, such as c"
    assert get_message(("a",), ("c",)) == (
        "plain PEFT loads 2 of 3 tensors; 1 are missing, such as a; 1 in the file are unknown, such as c"
    )


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
