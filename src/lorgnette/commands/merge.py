"""`merge`: base and adapter as one checkpoint that needs neither PEFT nor us."""

import shlex
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelSpec, explain_out_of_memory
from lorgnette.report.console import Terminal

MAX_ROUNDING_LOSS = 0.1
"""A share of the adapter's movement lost to rounding above which it is worth a warning."""


def merge(
    adapter: Path | str,
    out: Path | str,
    *,
    model: str | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Write the merged checkpoint to `out`, on the CPU in float32, and compare its answers with base and adapter in a
    process of plain transformers and peft. Refuses a folder that is there."""
    terminal = Terminal(console)
    adapter, out = Path(adapter), Path(out)
    if out.exists():
        raise UsageError("something is there already", where=str(out), hint="name a folder that is not there yet")
    asked = ModelSpec.from_names(model, adapter, terminal)
    assert asked.adapter is not None
    assert asked.metadata is not None
    import torch

    from lorgnette.commands.verify import describe_processing_change
    from lorgnette.device import select_device
    from lorgnette.engine import hf_loading as weights
    from lorgnette.engine import peft_adapter as adapters
    from lorgnette.lora.inspect import inspect_adapter
    from lorgnette.lora.merge import write_merged_checkpoint as merged
    from lorgnette.models.base_checkpoint import BaseCheckpoint
    from lorgnette.verification.reference_sample import ReferenceSample

    kept = ReferenceSample.load(asked.adapter)
    faults = [*inspect_adapter(asked.adapter).problems, *filter(None, [describe_processing_change(asked, kept)])]
    if faults:
        raise LorgnetteError("; ".join(faults), where=str(asked.adapter), hint="`lorgnette verify` says more")
    with explain_out_of_memory("merging needs four bytes a weight, twice"):
        loaded = weights.load_base_model(asked.checkpoint, torch.device("cpu"), torch.float32)
        merged(adapters.load_adapter(loaded, asked.adapter), asked.checkpoint, out)
        del loaded
    made = BaseCheckpoint.from_folder(out)
    asked.metadata.model_copy(update={"fingerprint": made.fingerprint}).write(out)
    terminal.print(f"merged     {out}")
    _report_rounding(asked, out, select_device(device).type, terminal)
    path = str(out.resolve())
    terminal.print(f"use        AutoModelForImageTextToText.from_pretrained({path!r})")
    terminal.print(f"vLLM       vllm serve {shlex.quote(path)}")
    return out


def _report_rounding(asked: ModelSpec, out: Path, device: str, terminal: Terminal) -> None:
    """Ask the merged folder what base and adapter are asked, and say what rounding has cost.

    Raises LorgnetteError where the folder does not answer as a checkpoint of its own should.
    """
    from lorgnette.commands.verify import check_sample_loss, describe_image_size, format_distance, print_answers
    from lorgnette.lora.merge import find_stored_dtype
    from lorgnette.verification.peft_check import Distance, check_with_peft
    from lorgnette.verification.reference_sample import ReferenceSample

    assert asked.adapter is not None
    assert asked.metadata is not None
    with TemporaryDirectory() as place:
        adapter = _rename_for_peft(asked.adapter, Path(place))
        found = check_with_peft(
            asked.checkpoint, adapter, asked.processor, asked.metadata.prompt, merged=out, device=device
        )
    if found.load_error is not None or found.names.missing:
        raise LorgnetteError(
            f"{out} could not be compared: plain peft does not take the adapter", where=str(asked.adapter),
            hint="`lorgnette verify` says why",
        )  # fmt: skip
    for wrong, what in (
        (found.missing_weights, "lacks weights"),
        (not found.has_same_inputs, "makes other inputs than its base"),
    ):
        if wrong:
            raise LorgnetteError(f"the merged folder {what}", where=str(out), hint="remove it, and merge again")
    kept = ReferenceSample.load(asked.adapter)
    if kept and found.reference_sample and not (finding := check_sample_loss(kept, found)).passed:
        raise LorgnetteError(
            f"the adapter is not the one that was trained: {finding.message}", where=str(asked.adapter),
            hint=f"{finding.hint}, remove {out}, and merge again",
        )  # fmt: skip
    tuned = Distance.from_parts([sample.adapter_effect for sample in found.answers])
    lost = Distance.from_parts([sample.merge_error for sample in found.answers])
    share = lost.total_variation / tuned.total_variation if tuned.total_variation else 0.0
    terminal.print(f"adapter    moves the base by {format_distance(tuned)}, on {len(found.answers)} pictures")
    say = terminal.print if share < MAX_ROUNDING_LOSS else terminal.warn
    say(f"rounding   to {find_stored_dtype(asked.checkpoint)} moves it by {format_distance(lost)}: {share:.1%} of that")
    print_answers(terminal, found.answers)
    terminal.print(f"pictures   {describe_image_size(asked)}")


def _rename_for_peft(adapter: Path, place: Path) -> Path:
    """The adapter, or a copy of it under today's names where it has those of before transformers 4.52."""
    from safetensors.torch import load_file, save_file

    from lorgnette.lora.peft_files import WEIGHTS_FILE, todays_name

    tensors = load_file(adapter / WEIGHTS_FILE)
    renamed = {todays_name(name): tensor for name, tensor in tensors.items()}
    if renamed.keys() == tensors.keys():
        return adapter
    copy = shutil.copytree(adapter, place / "adapter")
    save_file(renamed, copy / WEIGHTS_FILE, {"format": "pt"})
    return copy
