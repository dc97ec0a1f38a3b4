"""The single checks of an adapter, each as a sentence; used by the commands `verify` and `merge`."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.inference.loading import ModelSpec
from lorgnette.io.shell import escape_line
from lorgnette.lora.inspect import AdapterReport
from lorgnette.lora.merge import explain_merge_error
from lorgnette.lora.metadata import METADATA_FILE
from lorgnette.lora.peft_config import CONFIG_FILE, COPY_HINT
from lorgnette.lora.peft_files import HINT, WEIGHTS_FILE, explain_load_error, explain_names
from lorgnette.models.family import Family
from lorgnette.report.console import Terminal
from lorgnette.verification.peft_check import AnswerComparison, Distance, PeftResult
from lorgnette.verification.reference_sample import TOLERANCE, ReferenceSample

MAX_LOGPROB_DIFFERENCE = 1e-2
"""Largest log-probability difference that float32 rounding may cause; usually it is below 1e-4."""
NF4_IS_NOT_MERGED = "not into NF4 weights, which would be rounded again; `lorgnette merge` takes the weights before NF4"
MIN_TOTAL_VARIATION = 1e-6
"""A smaller mean total variation counts as no effect: it is within float32 rounding."""


@dataclass(frozen=True)
class CheckResult:
    """passed: True, False (then with a hint), or None for a warning or a check that is not possible."""

    check: str
    passed: bool | None
    message: str
    hint: str | None = None


def check_tensors(report: AdapterReport) -> Iterator[CheckResult]:
    """Check the adapter's files."""
    for problem in report.problems:
        yield CheckResult("weights", False, problem, COPY_HINT)
    if report.problems:
        return
    if report.unknown_options:
        message = f"{CONFIG_FILE} sets {', '.join(report.unknown_options)}, which PEFT ignores"
        yield CheckResult("options", None, message)
    total, num_zero = f"{report.num_modules.total()} modules, rank {report.rank}", report.num_zero.total()
    kinds = ", ".join(f"{name} {count}" for name, count in (+report.num_zero or report.num_modules).items())
    if num_zero:
        yield CheckResult("weights", None, f"{total}; B is zero in {num_zero}, they have no effect: {kinds}")
    else:
        yield CheckResult("weights", True, f"{total}; all LoRA B matrices are trained: {kinds}")


def check_base_model(
    model: str | None, adapter: Path, terminal: Terminal
) -> tuple[ModelSpec | None, list[CheckResult]]:
    """Check that base model, processor settings and prompt are those of training. The spec is None if they fail."""
    check = "inputs"
    try:
        sample = ReferenceSample.load(adapter)
        check = "base"
        spec = ModelSpec.from_names(model, adapter, terminal)
        change = describe_processing_change(spec, sample)
    except LorgnetteError as error:
        return None, [CheckResult(check, False, f"{error.message} ({error.where})", error.hint)]
    base = CheckResult("base", True, f"{spec.base_model} has the weights and chat template of training")
    if spec.metadata is None or not spec.metadata.is_ours:
        base = CheckResult("base", None, f"cannot tell if {spec.base_model} is its base model: no {METADATA_FILE}")
    inputs = CheckResult("inputs", True, "images, prompt and chat template give the token ids of training")
    if change is not None:
        inputs = CheckResult("inputs", False, change, COPY_HINT)
    elif sample is None:
        inputs = CheckResult("inputs", None, "no reference sample: cannot compare image size and prompt with training")
    return spec, [base, inputs]


def describe_processing_change(spec: ModelSpec, sample: ReferenceSample | None) -> str | None:
    """Say how image processing, prompt or chat template differ from training. None: no difference, or unknown."""
    assert spec.adapter is not None
    assert spec.metadata is not None
    if sample is None:
        return None
    if not spec.metadata.is_ours:
        return f"{METADATA_FILE} is missing: image size, prompt and base model of the training are unknown"
    return sample.describe_change(spec.adapter, spec.processor, spec.metadata.prompt)


def check_peft_result(
    result: PeftResult, sample: ReferenceSample | None, merge_obstacle: str | None = None
) -> list[CheckResult]:
    """Check what the process of plain transformers + PEFT returned. merge_obstacle: why it did not merge them."""
    if result.missing_weights:
        message = f"{len(result.missing_weights)} weights are in none of its files, such as {result.missing_weights[0]}"
        return [CheckResult("base", False, message, "download the whole checkpoint again")]
    if result.load_error is not None:
        return [CheckResult("loading", False, explain_load_error(result.load_error), HINT)]
    if difference := explain_names(result.saved_names, result.expected_names):
        return [CheckResult("loading", False, difference, HINT)]
    versions = " and ".join(f"{name} {version}" for name, version in result.versions.items())
    results = [CheckResult("loading", True, f"{versions} load all {len(result.saved_names)} tensors")]
    if sample is not None:
        results.append(check_sample_loss(sample, result.sample_loss))
    effect = Distance.from_parts([answer.adapter_effect for answer in result.answers])
    has_effect = effect.total_variation >= MIN_TOTAL_VARIATION
    message = f"{'the adapter changes' if has_effect else 'the adapter does not change'} the base model's answers"
    results.append(CheckResult("effect", has_effect, f"{message}: {format_distance(effect)}", COPY_HINT))
    if result.merge_failure:
        merge_obstacle = explain_merge_error(result.merge_failure)
    if merge_obstacle:
        return [*results, CheckResult("merged", None, merge_obstacle)]
    error = Distance.from_parts([answer.merge_error for answer in result.answers if answer.merge_error])
    is_same = error.max_logprob_difference < MAX_LOGPROB_DIFFERENCE
    message = f"the merged model answers {'the same' if is_same else 'differently'}: {format_distance(error)}"
    return [*results, CheckResult("merged", is_same, message, "try other versions of peft")]


def check_sample_loss(sample: ReferenceSample, loss: float | None) -> CheckResult:
    """Compare the recorded loss with the one from plain transformers + PEFT; None: its token ids differ."""
    if loss is None:
        message = "plain transformers gives other token ids for the reference sample than training did"
        return CheckResult("sample", False, message, "try other versions of transformers")
    message = f"loss of the reference sample: {sample.loss:.4f} when saved ({sample.dtype}), {loss:.4f} now"
    if abs(loss - sample.loss) <= TOLERANCE[sample.dtype]:
        return CheckResult("sample", True, message)
    message += ": the weights or the scale (lora_alpha, r, use_rslora) have changed since"
    return CheckResult("sample", False, message, f"copy {WEIGHTS_FILE} and {CONFIG_FILE} again, both of one adapter")


def format_distance(distance: Distance) -> str:
    """State the distance of two models in words."""
    return (
        f"{distance.total_variation:.2%} of the probability per token (KL {distance.kl:.2g} nats), another most likely "
        f"token at {distance.num_argmax_changes} of {distance.num_tokens}"
    )


def describe_image_size(spec: ModelSpec) -> str:
    """Say how images must be resized outside lorgnette, to match training."""
    if spec.metadata is None or not spec.metadata.is_ours:
        return "resize them as in training; the adapter's folder does not say how"
    image_processor = spec.processor.image_processor
    if spec.processor.settings.image_size is not None:
        height, width = image_processor.compute_size(1, 1)
        return f"resize them to {height}×{width} before sending: other programs keep their shape"
    limits = {"min_pixels": image_processor.min_pixels, "max_pixels": image_processor.max_pixels}
    return f"--mm-processor-kwargs {shlex.quote(json.dumps(limits))}"


def list_vllm_options(family: Family) -> list[str]:
    """What `vllm serve` needs so that its prompts are those of the training."""
    options = dict(family.template_options)
    return ["--default-chat-template-kwargs", json.dumps(options)] if options else []


def print_answers(terminal: Terminal, answers: Sequence[AnswerComparison]) -> None:
    """Print the greedy answers before and after; the merged model's only if it differs."""
    for number, answer in enumerate(answers, 1):
        terminal.print_result(f"image {number}    before: {escape_line(answer.base)}")
        terminal.print_result(f"           after:  {escape_line(answer.adapter)}")
        if answer.merged is not None and answer.merged != answer.adapter:
            terminal.print_result(f"           merged: {escape_line(answer.merged)}", style="yellow")
