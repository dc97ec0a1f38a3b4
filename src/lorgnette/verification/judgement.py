"""The judgement of an adapter: what its files and its base model's headers show. Every command that takes one uses it.

`verify` prints the checks; the others refuse an adapter that fails one, in the same words. No weights of the base model
are read, so nothing is loaded for an adapter that cannot be used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.inference.loading import ModelSpec, resolve_adapter
from lorgnette.io.folder_kind import explain_folder, find_folder_kind
from lorgnette.lora.inspect import AdapterReport, inspect_adapter
from lorgnette.lora.merge import explain_merge_error, find_merge_obstacle
from lorgnette.lora.peft_files import SavedAdapter, list_modules
from lorgnette.models.registry import find_unsupported_feature, parse_configs
from lorgnette.report.console import Terminal
from lorgnette.verification import checks
from lorgnette.verification.checks import CheckResult


@dataclass(frozen=True)
class Judgement:
    """results: of the checks, up to those that failed. spec and report are None if one did.

    merge_obstacle: why base and adapter cannot become one checkpoint, as a sentence; None if they can.
    """

    adapter: Path
    results: Sequence[CheckResult]
    spec: ModelSpec | None = None
    report: AdapterReport | None = None
    has_old_names: bool = False
    merge_obstacle: str | None = None

    @property
    def failures(self) -> list[CheckResult]:
        return [result for result in self.results if result.passed is False]

    def require(self, terminal: Terminal) -> ModelSpec:
        """The model with its adapter. Raises LorgnetteError if a check failed; warns of options that are ignored."""
        if self.failures or self.spec is None:
            message = "; ".join(result.message for result in self.failures)
            hints = dict.fromkeys(result.hint for result in self.failures if result.hint)
            raise LorgnetteError(message, where=str(self.adapter), hint="; ".join(hints))
        for result in self.results:
            if result.check == "options":
                terminal.warn(f"{self.adapter}: {result.message}")
        return self.spec


def judge_adapter(model: str | None, adapter: Path, terminal: Terminal) -> Judgement:
    """Check the adapter's files, its base model, its inputs, and that its tensors fit the model.

    model: the base model if it is not the one recorded with the adapter. Raises UsageError if there is no adapter.
    """
    adapter = resolve_adapter(adapter)
    if find_folder_kind(adapter) != "adapter":
        raise explain_folder(adapter, "adapter")
    try:
        saved = SavedAdapter.load(adapter)
    except LorgnetteError as error:
        return Judgement(adapter, [CheckResult("weights", False, error.message, error.hint)])
    report = inspect_adapter(saved)
    results = list(checks.check_tensors(report))
    if report.problems:
        return Judgement(adapter, results)
    spec, base_results = checks.check_base_model(model, adapter, terminal)
    results += base_results
    if spec is None or any(result.passed is False for result in results):
        return Judgement(adapter, results)
    try:
        config = spec.checkpoint.load_hf_config()
        if find_unsupported_feature(config) is None:
            saved.check_fits(*parse_configs(config))
        else:
            saved.check_patterns(list_modules(spec.checkpoint.list_weights()))
    except LorgnetteError as error:
        return Judgement(adapter, [*results, CheckResult("loading", False, error.message, error.hint)])
    if saved.has_old_names:
        results.append(CheckResult("names", None, "its tensors have the names from before transformers 4.52"))
    obstacle = find_merge_obstacle(saved, spec.checkpoint)
    return Judgement(
        adapter,
        results,
        replace(spec, is_base_changed=report.is_base_changed),
        report,
        saved.has_old_names,
        obstacle and explain_merge_error(obstacle),
    )
