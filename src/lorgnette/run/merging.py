"""`merge`: base and adapter as one checkpoint that needs neither PEFT nor us."""

from pathlib import Path

from rich.console import Console

from lorgnette.errors import UsageError
from lorgnette.report.terminal import Terminal
from lorgnette.run.opened import Asked, enough_memory


def merge(adapter: Path | str, out: Path | str, *, model: str | None = None, console: Console | None = None) -> Path:
    """Write the merged checkpoint to `out`, on the CPU in float32, and read it back. Refuses a folder that is there."""
    terminal = Terminal(console)
    adapter, out = Path(adapter), Path(out)
    if out.exists():
        raise UsageError("something is there already", where=str(out), remedy="name a folder that is not there yet")
    asked = Asked.of(model, adapter, terminal)
    import torch

    from lorgnette.model import adapter as adapters
    from lorgnette.model import load as weights
    from lorgnette.model.checkpoint import Checkpoint
    from lorgnette.model.merge import merge as merged

    cpu = torch.device("cpu")
    with enough_memory("merging needs four bytes a weight, twice"):
        loaded = weights.load(asked.checkpoint, cpu, torch.float32)
        assert asked.adapter is not None
        merged(adapters.load(loaded, asked.adapter), asked.checkpoint, out)
        made = Checkpoint.at(out)
        weights.load(made, cpu, torch.bfloat16)  # every name and shape is where it should be
    if asked.contract:
        asked.contract.model_copy(update={"fingerprint": made.fingerprint}).write(out)
    terminal.say(f"merged     {out}")
    return out
