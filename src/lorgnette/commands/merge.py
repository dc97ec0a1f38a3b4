"""`merge`: writes base model and adapter as one checkpoint that needs neither PEFT nor lorgnette."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from lorgnette.commands.model_card import CARD_FILE, write_model_card
from lorgnette.device import select_device
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelSpec, explain_out_of_memory
from lorgnette.io.shell import format_command, quote_word
from lorgnette.lora.merge import Rounding, untie_output_layer, write_merged_checkpoint
from lorgnette.lora.peft_files import SavedAdapter, explain_load_error, explain_names
from lorgnette.lora.unquantized_base import find_unquantized_base
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.report.console import Terminal
from lorgnette.resolve import portable_name
from lorgnette.verification import checks
from lorgnette.verification.judgement import judge_adapter
from lorgnette.verification.peft_check import Distance, check_with_peft
from lorgnette.verification.reference_sample import ReferenceSample

MergedDtype = Literal["base", "float32"]
MAX_ROUNDING_LOSS = 0.1
"""Share of the adapter's effect that rounding may change without a warning."""
SAFE_KEPT, MIN_KEPT = 0.9, 0.5
"""Shares of the adapter's change of the weights (lora.merge.Rounding): below the first `merge` warns, below the second
it refuses. Measured on the built-in model in bfloat16, with two adapters made weaker step by step: where 1.00, 0.87,
0.75, 0.44 and 0.14 are kept, rounding changes 0.02 to 0.09, 0.25, 0.37, 0.58 and 0.86 of the effect on the answers. For
random weights of Qwen2-VL-2B's shapes, an adapter of 62 steps at 1e-4 keeps 0.83, one of 10 steps 0.33."""


def merge(
    adapter: Path | str,
    out: Path | str,
    *,
    model: str | None = None,
    base: str | None = None,
    device: str = "auto",
    dtype: MergedDtype = "base",
    force: bool = False,
    console: Console | None = None,
) -> Path:
    """Write the merged checkpoint to the new folder `out`, then compare its answers with base and adapter.

    Merges on the CPU in float32. dtype: of the written weights; base: that of the base model's. force: write also if
    rounding to it keeps less than MIN_KEPT of the adapter. An adapter of NF4 weights is merged into the weights that
    were quantized; base: their model, if the NF4 model does not name it. Raises UsageError if `out` exists,
    LorgnetteError if adapter or result are broken, rounding keeps too little, or no unquantized base is found.
    """
    terminal = Terminal(console)
    adapter, out = Path(adapter), Path(out)
    if out.exists():
        raise UsageError("the output folder exists", where=str(out), hint="name a new folder")
    # Refuse a broken adapter before anything is written.
    judgement = judge_adapter(model, adapter, terminal)
    spec = judgement.require(terminal)
    assert spec.adapter is not None
    assert spec.metadata is not None
    if judgement.merge_obstacle:
        hint = "use it beside its base model: `lorgnette verify` prints how"
        raise LorgnetteError(judgement.merge_obstacle, where=str(spec.adapter), hint=hint)
    if base is not None and spec.checkpoint.quantization is None:
        hint = "leave it out; --model names an adapter's base model"
        raise UsageError("the adapter was not trained on NF4 weights", where=f"base={base}", hint=hint)
    if spec.checkpoint.quantization is not None:
        spec = _replace_base(spec, base, terminal)
    assert spec.adapter is not None
    from lorgnette.engine.peft_engine import load_adapter, load_base_model

    with explain_out_of_memory("merging needs 8 bytes per weight"):
        base_model = load_base_model(spec.checkpoint, torch.device("cpu"), torch.float32)
        untie_output_layer(base_model, SavedAdapter.load(spec.adapter))
        rounding = write_merged_checkpoint(
            load_adapter(base_model, spec.adapter), spec.checkpoint, out, use_float32=dtype == "float32",
            check=lambda rounding: None if force else _check_rounding(rounding, adapter, out),
        )  # fmt: skip
        del base_model
    assert spec.metadata is not None
    fingerprint = BaseCheckpoint.from_folder(out).fingerprint
    spec.metadata.model_copy(update={"fingerprint": fingerprint, "quantization": None}).write(out)
    write_model_card(out, spec, rounding)
    terminal.print_result(f"merged     {out}")
    _report_rounding(spec, out, rounding, select_device(device).type, terminal)
    path = str(out.resolve())
    terminal.print_result(f"use        AutoModelForImageTextToText.from_pretrained({path!r})")
    # By default vLLM runs float32 weights in a dtype of 16 bits, which would round them after all.
    options = ["--dtype", "float32"] if rounding.dtype == "float32" else []
    words = [path, *checks.list_vllm_options(spec.checkpoint.family), *options]
    terminal.print_result(f"vLLM       vllm serve {' '.join(map(quote_word, words))}")
    terminal.print_result(f"card       {out / CARD_FILE}: how it was made, and the commands for GGUF and Ollama")
    return out


def _replace_base(spec: ModelSpec, base: str | None, terminal: Terminal) -> ModelSpec:
    """The adapter with the base model whose weights were quantized. Says how far the two are apart."""
    assert spec.metadata is not None
    found = find_unquantized_base(spec.checkpoint, spec.base_model, terminal, given=base)
    terminal.print_result(f"base       {found.name} without quantization; the adapter was trained on its NF4 weights,")
    terminal.print_result(f"           which differ by {found.distance:.1%} of the norm")
    facts = {"model": portable_name(found.name), "revision": found.checkpoint.revision}
    metadata = spec.metadata.model_copy(update=facts)
    return replace(spec, base_model=found.name, checkpoint=found.checkpoint, metadata=metadata)


def _check_rounding(rounding: Rounding, adapter: Path, out: Path) -> None:
    if rounding.kept < MIN_KEPT:
        message = f"rounding to {rounding.dtype} keeps only {rounding.kept:.0%} of what the adapter changes"
        command = f"{format_command('merge', adapter, out)} --dtype float32"
        hint = f"write float32 weights, twice as large: {command}; or take the loss: --force"
        raise LorgnetteError(message, where=str(adapter), hint=hint)


def _report_rounding(spec: ModelSpec, out: Path, rounding: Rounding, device: str, terminal: Terminal) -> None:
    """Compare merged model, adapter and base model, and say what rounding to the written dtype costs.

    Raises LorgnetteError if the merged folder is broken, or the adapter is not the one that was trained.
    """
    assert spec.adapter is not None
    assert spec.metadata is not None
    try:
        result = check_with_peft(
            spec.checkpoint, spec.adapter, spec.processor, spec.metadata.prompt, merged=out, device=device,
            is_base_changed=spec.is_base_changed,
        )  # fmt: skip
    except LorgnetteError as failure:
        message = f"{out} is written but not compared: {failure.message}"
        raise LorgnetteError(message, where=failure.where, hint=failure.hint) from failure
    names = explain_names(result.saved_names, result.expected_names)
    if problem := explain_load_error(result.load_error) if result.load_error else names:
        message = f"{out} is written but not compared: {problem}"
        raise LorgnetteError(message, where=str(spec.adapter), hint="`lorgnette verify` explains it")
    if result.missing_weights or not result.has_same_inputs:
        problem = "lacks weights" if result.missing_weights else "gives other model inputs than its base model"
        raise LorgnetteError(f"the merged folder {problem}", where=str(out), hint="remove it, and merge again")
    sample = ReferenceSample.load(spec.adapter)
    check = checks.check_sample_loss(sample, result.sample_loss) if sample else None
    if spec.metadata.quantization and sample and result.sample_loss is not None:
        losses = f"{sample.loss:.4f} on NF4 when saved, {result.sample_loss:.4f} on the base model's own weights"
        terminal.print_result(f"sample     loss of the reference sample: {losses}")
    elif check and not check.passed:
        message, hint = f"the adapter is not the one that was trained: {check.message}", f"{check.hint}, remove {out}"
        raise LorgnetteError(message, where=str(spec.adapter), hint=f"{hint}, and merge again")
    effect = Distance.from_parts([answer.adapter_effect for answer in result.answers])
    error = Distance.from_parts([answer.merge_error for answer in result.answers if answer.merge_error])
    share = error.total_variation / effect.total_variation if effect.total_variation else 0.0
    style = "" if rounding.kept >= SAFE_KEPT else "yellow"
    kept = f"{rounding.kept:.0%} of what the adapter changes in the weights"
    terminal.print_result(f"rounding   to {rounding.dtype} keeps {kept}", style=style)
    style = "" if share < MAX_ROUNDING_LOSS else "yellow"
    terminal.print_result(f"           and changes {share:.1%} of its effect on the answers", style=style)
    if share >= MAX_ROUNDING_LOSS or rounding.kept < SAFE_KEPT:
        advice = "--dtype float32 writes a checkpoint without this loss, twice as large"
        terminal.print_result(f"           {advice}", style="yellow")
    terminal.print_result(f"           adapter:  {checks.format_distance(effect)}")
    terminal.print_result(f"           rounding: {checks.format_distance(error)}")
    checks.print_answers(terminal, result.answers)
    terminal.print_result(f"images     {checks.describe_image_size(spec)}")
