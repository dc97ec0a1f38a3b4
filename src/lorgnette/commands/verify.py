"""`verify`: checks an adapter's files, its base model, and its outputs under plain transformers + PEFT."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette.commands.predict import read_examples
from lorgnette.device import select_device
from lorgnette.inference.loading import ModelSpec
from lorgnette.io.shell import format_command, quote_word
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.family import Family
from lorgnette.report.console import Terminal
from lorgnette.report.run import Run
from lorgnette.verification import checks
from lorgnette.verification.checks import CheckResult
from lorgnette.verification.judgement import Judgement, judge_adapter
from lorgnette.verification.peft_check import AnswerComparison, check_with_peft
from lorgnette.verification.reference_sample import ReferenceSample


@dataclass(frozen=True)
class VerifyReport:
    """The results of all checks. usage: (program, how it loads the adapter), only if all passed."""

    adapter: Path
    results: Sequence[CheckResult]
    answers: Sequence[AnswerComparison] = ()
    usage: Sequence[tuple[str, str]] = ()

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def hints(self) -> tuple[str, ...]:
        """Hints of the failed checks, without repetitions."""
        return tuple(dict.fromkeys(result.hint for result in self.failures if result.hint))

    @property
    def summary(self) -> str:
        failed = {result.check for result in self.failures}
        return "base model and adapter do not fit" if failed == {"base"} else "the adapter failed a check"

    @property
    def failures(self) -> list[CheckResult]:
        return [result for result in self.results if result.passed is False]

    def as_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return {
            "adapter": str(self.adapter),
            "passed": self.passed,
            "results": [asdict(result) for result in self.results],
            "answers": [answer.model_dump(mode="json") for answer in self.answers],
            "usage": dict(self.usage),
        }


def verify(
    adapter: Path | str | Run,
    *,
    model: str | None = None,
    data: Path | str | None = None,
    rows: int = 4,
    device: str = "auto",
    console: Console | None = None,
) -> VerifyReport:
    """Check an adapter or the adapter of a run, with the package's image or the first rows of a data file.

    Raises LorgnetteError only if a check cannot run; whatever is wrong with the adapter is a failed check.
    """
    # What the files say; no weights of the base model are read.
    terminal = Terminal(console)
    judgement = judge_adapter(model, Path(adapter), terminal)
    adapter, spec = judgement.adapter, judgement.spec
    result = VerifyReport(adapter, judgement.results)
    _print_results(terminal, result.results)
    if spec and spec.metadata and result.passed:
        # What plain transformers + PEFT compute.
        prompt, device = spec.metadata.prompt, select_device(device).type
        examples = read_examples(Path(data), prompt, max_rows=rows, terminal=terminal) if data else ()
        peft_result = check_with_peft(
            spec.checkpoint, adapter, spec.processor, prompt, examples, device=device,
            is_mergeable=not (judgement.merge_obstacle or spec.checkpoint.quantization),
            is_base_changed=spec.is_base_changed,
        )  # fmt: skip
        sample = ReferenceSample.load(adapter)
        why_unmerged = judgement.merge_obstacle or (checks.NF4_IS_NOT_MERGED if spec.checkpoint.quantization else None)
        peft_results = checks.check_peft_result(peft_result, sample, why_unmerged)
        _print_results(terminal, peft_results)
        checks.print_answers(terminal, peft_result.answers)
        result = VerifyReport(adapter, [*result.results, *peft_results], peft_result.answers)
        if result.passed:
            obstacles = [check.message for check in peft_results if check.check == "merged" and not check.passed]
            obstacle = next((text for text in obstacles if text != checks.NF4_IS_NOT_MERGED), None)
            judgement = replace(judgement, merge_obstacle=obstacle)
            result = replace(result, usage=describe_usage(judgement))
    for name, line in result.usage:
        terminal.print_result(f"{name:<10} {line}")
    failed = ", ".join(dict.fromkeys(check.check for check in result.failures))
    terminal.print_result(f"result     {f'failed: {failed}' if failed else 'all checks passed'}")
    if not result.passed:
        terminal.error(f"lorgnette: {result.summary} · {adapter} · {'; '.join(result.hints)}")
    return result


def describe_usage(judgement: Judgement) -> tuple[tuple[str, str], ...]:
    """Say how plain PEFT, vLLM and `serve` load the adapter, and the size of its images."""
    spec, report = judgement.spec, judgement.report
    assert spec is not None
    assert report is not None
    assert spec.adapter is not None
    base, adapter = resolve_base_name(spec), str(spec.adapter.resolve())
    quantization, options = spec.checkpoint.quantization, ""
    if quantization and not quantization.is_stored:
        options = f", quantization_config=BitsAndBytesConfig({format_nf4_options(spec.checkpoint.family)})"
    peft = f"PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained({base!r}{options}), {adapter!r})"
    if judgement.has_old_names:
        peft = f"rename it first (lorgnette export-adapter {quote_word(adapter)} NEW_FOLDER --transformers 4.52)"
    reason = report.merge_reason or ("its names are from before transformers 4.52" if judgement.has_old_names else None)
    reason = reason or ("its base model has NF4 weights" if quantization and quantization.is_stored else None)
    if judgement.merge_obstacle:
        vllm = f"does not load it: {judgement.merge_obstacle}"
    elif reason:
        vllm = f"merge it first (lorgnette merge): {reason}"
    else:
        max_rank = max(8, 1 << (report.rank - 1).bit_length())  # vLLM takes powers of two
        words = ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"tuned={adapter}"]
        words += ["--max-lora-rank", str(max_rank), *checks.list_vllm_options(spec.checkpoint.family)]
        vllm = " ".join(map(quote_word, words))
    images = checks.describe_image_size(spec)
    return ("PEFT", peft), ("vLLM", vllm), ("serve", describe_serving(spec)), ("images", images)


def describe_serving(spec: ModelSpec) -> str:
    """The command that serves the adapter beside its base model, or why `serve` does not run it."""
    from lorgnette.engine.loading import explain_unsupported_inference

    assert spec.adapter is not None
    if reason := explain_unsupported_inference(spec.checkpoint, None):
        return f"does not run {reason}"
    if reason := explain_unsupported_inference(spec.checkpoint, SavedAdapter.load(spec.adapter)):
        return f"merge it first (lorgnette merge): {reason}"
    is_recorded = spec.metadata is not None and spec.metadata.model == spec.base_model
    return format_command("serve", spec.adapter, *([] if is_recorded else ["--model", spec.base_model]))


def format_nf4_options(family: Family) -> str:
    """The arguments of transformers' BitsAndBytesConfig that quantize what quantization=nf4 does."""
    others = sorted({name.rpartition(".")[0] for name in family.other_language_linears})
    left_out = ["model.visual", "lm_head", *(f".*{name}" for name in others)]
    options = "load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True"
    return f"{options}, llm_int8_skip_modules={left_out}"


def resolve_base_name(spec: ModelSpec) -> str:
    """The base model as other programs find it: the name on a hub, or the absolute path of its folder."""
    is_hub_name = spec.base_model != "demo" and not Path(spec.base_model).exists()
    return spec.base_model if is_hub_name else str(spec.checkpoint.folder.resolve())


def _print_results(terminal: Terminal, results: Sequence[CheckResult]) -> None:
    for result in results:
        style = {True: "", None: "yellow", False: "red"}[result.passed]
        terminal.print_result(f"{result.check:<10} {result.message}", style=style)
