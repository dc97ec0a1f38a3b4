"""`verify`: does this adapter do anything, and elsewhere too?

First what its files say, then what a process of plain transformers and peft finds.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette.device import select_device
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelSpec, resolve_adapter
from lorgnette.lora.inspect import COPY_HINT, AdapterReport, inspect_adapter
from lorgnette.lora.metadata import METADATA_FILE, PEFT_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE, todays_name
from lorgnette.metrics.eval_prompts import read_examples
from lorgnette.report.console import Terminal
from lorgnette.verification.peft_check import AnswerComparison, Distance, NameMatch, PeftResult, check_with_peft
from lorgnette.verification.reference_sample import TOLERANCE, ReferenceSample

MAX_LOGPROB_DIFFERENCE = 1e-2
"""Largest difference of a log-probability that summing in another order makes in float32; usually it is below 1e-4."""
MIN_TOTAL_VARIATION = 1e-6
"""A mean total variation below this is no movement: float32 itself is no finer."""


@dataclass(frozen=True)
class CheckResult:
    """good: True, False (a fault, and then there is a remedy), or None where it cannot be told or is worth a look."""

    check: str
    passed: bool | None
    message: str
    hint: str | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What was found out about an adapter; lines: how to use it elsewhere."""

    adapter: Path
    results: tuple[CheckResult, ...]
    answers: tuple[AnswerComparison, ...]
    usage: tuple[tuple[str, str], ...]

    @property
    def passed(self) -> bool:
        return all(finding.passed is not False for finding in self.results)

    @property
    def hints(self) -> tuple[str, ...]:
        """What mends the faults, each once."""
        found = [finding.hint for finding in self.results if finding.passed is False and finding.hint]
        return tuple(dict.fromkeys(found))

    @property
    def summary(self) -> str:
        """Of the faults, in words."""
        about = {finding.check for finding in self.results if finding.passed is False}
        return "base and adapter do not fit" if about == {"base"} else "this adapter is not good"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "adapter": str(self.adapter),
            "good": self.passed,
            "findings": [asdict(finding) for finding in self.results],
            "samples": [sample.model_dump(mode="json") for sample in self.answers],
            "use": dict(self.usage),
        }


def verify(
    adapter: Path | str,
    *,
    model: str | None = None,
    source: Path | str | None = None,
    rows: int = 4,
    device: str = "auto",
    console: Console | None = None,
) -> VerifyReport:
    """Look the adapter over and ask it about drawn pictures, or about the first rows of a data file.

    Raises LorgnetteError only where asking is not possible; what is wrong with the adapter is a finding.
    """
    terminal, adapter = Terminal(console), resolve_adapter(Path(adapter))
    if not any((adapter / name).exists() for name in (METADATA_FILE, PEFT_FILE, WEIGHTS_FILE)):
        raise UsageError(
            "no such adapter" if not adapter.exists() else "no adapter in it",
            where=str(adapter),
            hint="name a run, or its `adapter` folder",
        )
    findings: list[CheckResult] = []
    samples: tuple[AnswerComparison, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    contents, asked = _check_files(adapter, findings), _check_base(model, adapter, terminal, findings)
    for finding in findings:
        _print_result(terminal, finding)
    if contents and asked and asked.metadata and all(finding.passed is not False for finding in findings):
        prompt = asked.metadata.prompt
        examples = read_examples(Path(source), prompt, max_rows=rows) if source else ()
        found = check_with_peft(
            asked.checkpoint, adapter, asked.processor, prompt, examples, device=select_device(device).type
        )
        more = _check_peft_result(found, ReferenceSample.load(adapter))
        for finding in more:
            _print_result(terminal, finding)
        findings += more
        samples = found.answers
        print_answers(terminal, samples)
        if all(finding.passed is not False for finding in more):
            lines = describe_usage(asked, contents)
    verdict = VerifyReport(adapter, tuple(findings), samples, lines)
    for name, line in lines:
        terminal.print(f"{name:<10} {line}")
    if not verdict.passed:
        terminal.error(f"lorgnette: {verdict.summary} · {adapter} · {'; '.join(verdict.hints)}")
    return verdict


def describe_usage(asked: ModelSpec, contents: AdapterReport) -> tuple[tuple[str, str], ...]:
    """How the adapter is used with plain peft, and with vLLM where vLLM takes it."""
    assert asked.adapter is not None
    base, adapter = resolve_base_name(asked), str(asked.adapter.resolve())
    pictures = "pictures", describe_image_size(asked)
    peft = f"PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained({base!r}), {adapter!r})"
    if contents.vllm_obstacles:
        refused = f"would refuse it: {'; '.join(contents.vllm_obstacles)}. Merge it: lorgnette merge"
        return ("PEFT", peft), ("vLLM", refused), pictures
    words = ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"tuned={adapter}"]
    words += ["--max-lora-rank", str(contents.max_lora_rank)]
    return ("PEFT", peft), ("vLLM", shlex.join(words)), pictures


def resolve_base_name(asked: ModelSpec) -> str:
    """The base as others find it: a hub's name, or the whole path of a folder."""
    path = Path(asked.base_model)
    return (
        asked.base_model if not path.exists() and asked.base_model != "demo" else str(asked.checkpoint.folder.resolve())
    )


def describe_image_size(asked: ModelSpec) -> str:
    """What whoever asks elsewhere has to see to: pictures must come as the adapter was trained."""
    encode = asked.processor.settings
    if asked.metadata is None or not asked.metadata.is_ours:
        return "as large as in training: the adapter's folder does not say how large that was"
    if encode.image_size is not None:
        height, width = asked.processor.image_processor.compute_size(1, 1)
        return f"resize them to {height}×{width} before they are sent: elsewhere they keep their shape"
    limits = {
        "min_pixels": asked.processor.image_processor.min_pixels,
        "max_pixels": asked.processor.image_processor.max_pixels,
    }
    return f"--mm-processor-kwargs {shlex.quote(json.dumps(limits))}"


def print_answers(terminal: Terminal, samples: Sequence[AnswerComparison]) -> None:
    """Greedy texts side by side; the merged one where it differs."""
    for number, sample in enumerate(samples, 1):
        terminal.print(f"picture {number}  before: {sample.base}")
        terminal.print(f"           after:  {sample.adapter}")
        if sample.merged != sample.adapter:
            terminal.warn(f"           merged: {sample.merged}")


def format_distance(distance: Distance) -> str:
    """How far two models are apart, in words."""
    return (
        f"KL {distance.kl:.2g} nats and total variation {distance.total_variation:.2g} a token, "
        f"another first choice at {distance.num_argmax_changes} of {distance.num_tokens}"
    )


def _check_files(adapter: Path, findings: list[CheckResult]) -> AdapterReport | None:
    try:
        contents = inspect_adapter(adapter)
    except LorgnetteError as error:
        findings.append(CheckResult("weights", False, error.message, error.hint))
        return None
    kinds = ", ".join(f"{kind.name} {kind.num_modules}" for kind in contents.kinds)
    if contents.problems:
        findings += [CheckResult("weights", False, fault, COPY_HINT) for fault in contents.problems]
    elif contents.num_zero:
        silent = ", ".join(f"{kind.name} {kind.num_zero}" for kind in contents.kinds if kind.num_zero)
        told = f"B is zero in {contents.num_zero} of {contents.num_modules} modules, which do nothing: {silent}"
        findings.append(CheckResult("weights", None, told))
    else:
        told = f"{contents.num_modules} modules of rank {contents.rank} or less, no B is zero: {kinds}"
        findings.append(CheckResult("weights", True, told))
    return contents


def _check_base(model: str | None, adapter: Path, terminal: Terminal, findings: list[CheckResult]) -> ModelSpec | None:
    """The base model, and whether it and the settings are those of training."""
    about = "encoding"
    try:
        kept = ReferenceSample.load(adapter)
        about = "base"
        asked = ModelSpec.from_names(model, adapter, terminal)
        assert asked.metadata is not None  # an adapter was asked for
        other = describe_processing_change(asked, kept)
    except LorgnetteError as error:
        findings.append(CheckResult(about, False, f"{error.message} ({error.where})", error.hint))
        return None
    if asked.metadata.is_ours:
        findings.append(
            CheckResult("base", True, f"{asked.base_model} has the weights and the template it was trained with")
        )
    else:
        findings.append(
            CheckResult("base", None, f"whether {asked.base_model} is its base is said nowhere (no lorgnette.json)")
        )
    if other is not None:
        findings.append(CheckResult("encoding", False, other, COPY_HINT))
    elif kept is not None:
        findings.append(
            CheckResult("encoding", True, "pictures, prompt and template make the tokens that training made")
        )
    else:
        told = "no witness was kept: another resolution or prompt than in training would not be noticed"
        findings.append(CheckResult("encoding", None, told))
    return asked


def describe_processing_change(asked: ModelSpec, kept: ReferenceSample | None) -> str | None:
    """What pictures, prompt and template are, that they were not in training; None: nothing, or nobody knows."""
    assert asked.adapter is not None
    assert asked.metadata is not None
    if kept is None:
        return None
    if not asked.metadata.is_ours:
        return (
            f"{METADATA_FILE} is missing, and with it the size of the pictures, the prompt and the base of the training"
        )
    return kept.describe_change(asked.adapter, asked.processor, asked.metadata.prompt)


def _check_peft_result(found: PeftResult, kept: ReferenceSample | None) -> list[CheckResult]:
    """What plain transformers and peft had to say."""
    if found.missing_weights:
        told = f"{len(found.missing_weights)} weights are in none of its files, as {found.missing_weights[0]}"
        return [CheckResult("base", False, told, "download the checkpoint again, whole")]
    if found.load_error is not None:
        return [CheckResult("loading", False, f"plain peft does not take it: {found.load_error}", COPY_HINT)]
    if found.names.missing or found.names.unexpected:
        return [_check_names(found.names)]
    total = found.names.num_matched
    versions = " and ".join(f"{name} {version}" for name, version in found.versions.items())
    findings = [CheckResult("loading", True, f"plain {versions}: all {total} names match")]
    if kept is not None and found.reference_sample is not None:
        findings.append(check_sample_loss(kept, found))
    tuned = Distance.from_parts([sample.adapter_effect for sample in found.answers])
    merged = Distance.from_parts([sample.merge_error for sample in found.answers])
    told = f"{format_distance(tuned)} on {len(found.answers)} pictures"
    if tuned.total_variation < MIN_TOTAL_VARIATION:
        told = f"the adapter moves nothing: {told}"
    findings.append(CheckResult("moved", tuned.total_variation >= MIN_TOTAL_VARIATION, told, COPY_HINT))
    same = merged.max_logprob_difference < MAX_LOGPROB_DIFFERENCE
    told = f"{'answers as base and adapter do' if same else 'answers otherwise'}: {format_distance(merged)}"
    return [*findings, CheckResult("merged", same, told, "see whether it does with other versions of peft")]


def _check_names(names: NameMatch) -> CheckResult:
    """PEFT leaves out what it does not find, and only warns."""
    told = f"plain peft finds {names.num_matched} of {names.num_matched + len(names.missing)} tensors"
    if names.unexpected and {todays_name(name) for name in names.unexpected} == set(names.missing):
        told += f": these are names from before transformers 4.52, as {names.unexpected[0]}"
        return CheckResult("loading", False, told, "merge it (lorgnette merge), which reads them, or rename them")
    if names.missing:
        told += f"; {len(names.missing)} are missing, as {names.missing[0]}"
    if names.unexpected:
        told += f"; it has no use for {len(names.unexpected)}, as {names.unexpected[0]}"
    return CheckResult("loading", False, told, COPY_HINT)


def check_sample_loss(kept: ReferenceSample, found: PeftResult) -> CheckResult:
    """The witness asked again, by other code than the engine's."""
    assert found.reference_sample is not None
    now = found.reference_sample.loss
    if now is None:
        told = "plain transformers makes other tokens of it than training did"
        return CheckResult("witness", False, told, "see whether it does with other versions of transformers")
    told = f"loss on its drawn picture {kept.loss:.4f} when it was saved ({kept.dtype}), {now:.4f} now"
    if abs(now - kept.loss) <= TOLERANCE[kept.dtype]:
        return CheckResult("witness", True, told)
    told += ": these are not the weights, or not the scale (lora_alpha, r, use_rslora), that were saved"
    return CheckResult("witness", False, told, f"copy {WEIGHTS_FILE} and {PEFT_FILE} again, both of one adapter")


def _print_result(terminal: Terminal, finding: CheckResult) -> None:
    say = {True: terminal.print, None: terminal.warn, False: terminal.error}[finding.passed]
    say(f"{finding.check:<10} {finding.message}")
