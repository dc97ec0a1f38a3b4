"""`merge`: base and adapter as one checkpoint that needs neither PEFT nor us."""

import shlex
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import Asked, enough_memory
from lorgnette.report.console import Terminal

LOST = 0.1
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
        raise UsageError("something is there already", where=str(out), remedy="name a folder that is not there yet")
    asked = Asked.of(model, adapter, terminal)
    assert asked.adapter is not None
    assert asked.contract is not None
    import torch

    from lorgnette.commands.verify import encoded_otherwise
    from lorgnette.device import device_of
    from lorgnette.engine import hf_loading as weights
    from lorgnette.engine import peft_adapter as adapters
    from lorgnette.lora.inspect import inventory
    from lorgnette.lora.merge import merge as merged
    from lorgnette.models.base_checkpoint import Checkpoint
    from lorgnette.verification.reference_sample import Witness

    kept = Witness.read(asked.adapter)
    faults = [*inventory(asked.adapter).faults, *filter(None, [encoded_otherwise(asked, kept)])]
    if faults:
        raise LorgnetteError("; ".join(faults), where=str(asked.adapter), remedy="`lorgnette verify` says more")
    with enough_memory("merging needs four bytes a weight, twice"):
        loaded = weights.load(asked.checkpoint, torch.device("cpu"), torch.float32)
        merged(adapters.load(loaded, asked.adapter), asked.checkpoint, out)
        del loaded
    made = Checkpoint.at(out)
    asked.contract.model_copy(update={"fingerprint": made.fingerprint}).write(out)
    terminal.say(f"merged     {out}")
    _compare(asked, out, device_of(device).type, terminal)
    path = str(out.resolve())
    terminal.say(f"use        AutoModelForImageTextToText.from_pretrained({path!r})")
    terminal.say(f"vLLM       vllm serve {shlex.quote(path)}")
    return out


def _compare(asked: Asked, out: Path, device: str, terminal: Terminal) -> None:
    """Ask the merged folder what base and adapter are asked, and say what rounding has cost.

    Raises LorgnetteError where the folder does not answer as a checkpoint of its own should.
    """
    from lorgnette.commands.verify import moved, pictures_elsewhere, replayed, say_texts
    from lorgnette.lora.merge import stored_dtype
    from lorgnette.verification.peft_check import Distance, ask
    from lorgnette.verification.reference_sample import Witness

    assert asked.adapter is not None
    assert asked.contract is not None
    with TemporaryDirectory() as place:
        adapter = _as_peft_reads_it(asked.adapter, Path(place))
        found = ask(asked.checkpoint, adapter, asked.encoder, asked.contract.prompt, merged=out, device=device)
    if found.failed is not None or found.names.missing:
        raise LorgnetteError(
            f"{out} could not be compared: plain peft does not take the adapter", where=str(asked.adapter),
            remedy="`lorgnette verify` says why",
        )  # fmt: skip
    for wrong, what in ((found.lacking, "lacks weights"), (not found.same_inputs, "makes other inputs than its base")):
        if wrong:
            raise LorgnetteError(f"the merged folder {what}", where=str(out), remedy="remove it, and merge again")
    kept = Witness.read(asked.adapter)
    if kept and found.witness and not (finding := replayed(kept, found)).good:
        raise LorgnetteError(
            f"the adapter is not the one that was trained: {finding.told}", where=str(asked.adapter),
            remedy=f"{finding.remedy}, remove {out}, and merge again",
        )  # fmt: skip
    tuned = Distance.over([sample.moved for sample in found.samples])
    lost = Distance.over([sample.rounded for sample in found.samples])
    share = lost.total_variation / tuned.total_variation if tuned.total_variation else 0.0
    terminal.say(f"adapter    moves the base by {moved(tuned)}, on {len(found.samples)} pictures")
    say = terminal.say if share < LOST else terminal.warn
    say(f"rounding   to {stored_dtype(asked.checkpoint)} moves it by {moved(lost)}: {share:.1%} of that")
    say_texts(terminal, found.samples)
    terminal.say(f"pictures   {pictures_elsewhere(asked)}")


def _as_peft_reads_it(adapter: Path, place: Path) -> Path:
    """The adapter, or a copy of it under today's names where it has those of before transformers 4.52."""
    from safetensors.torch import load_file, save_file

    from lorgnette.lora.peft_files import WEIGHTS, todays_name

    tensors = load_file(adapter / WEIGHTS)
    renamed = {todays_name(name): tensor for name, tensor in tensors.items()}
    if renamed.keys() == tensors.keys():
        return adapter
    copy = shutil.copytree(adapter, place / "adapter")
    save_file(renamed, copy / WEIGHTS, {"format": "pt"})
    return copy
