"""`setup`: fetches a model and compiles its kernels for this GPU, so that no training waits for either. No torch."""

from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette.commands.arguments import SettingsLike, build_settings
from lorgnette.engine.select import select_engine
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.kernels import compile_ahead
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.planning.limits import pad_slots
from lorgnette.report.console import Terminal
from lorgnette.resolve import resolve_model
from lorgnette.training.initial_adapter import inherit_settings
from lorgnette.training.kernel_stage import build_request, round_slots, show_progress

_SLOTS = {round_slots(pad_slots(slots)) for slots in range(1, 1025)}
"""Of KV caches of up to 1024 tokens: one of every kind that has kernels of its own."""


def setup(
    settings: SettingsLike = None, *, recipe: str | Path | None = None, console: Console | None = None, **values: Any
) -> int:
    """Download the model, if it is not there, and compile what a training of it with these settings launches.

        lorgnette.setup(model="Qwen2-VL-2B-Instruct")

    recipe, settings, values: as in `train`; no data is needed. Returns the number of kernels. Raises UsageError if
    lorgnette's engine does not run with these settings, LorgnetteError without a GPU or if kernels cannot be compiled.
    """
    terminal = Terminal(console)
    chosen = build_settings(recipe=recipe, settings=settings, values=values, terminal=terminal)
    chosen = inherit_settings(chosen, terminal)
    is_for_gpu = chosen.device != "cpu" and chosen.engine != "reference"
    if is_for_gpu and not compile_ahead.is_wanted(chosen.device, chosen.engine):  # before gigabytes are fetched
        hint = "run it on the machine that will train; a CPU needs no setup"
        raise LorgnetteError("no NVIDIA GPU with Triton is here", where="this machine", hint=hint)
    checkpoint = BaseCheckpoint.from_folder(resolve_model(chosen.model, terminal)).quantize(chosen.quantization)
    engine, reason = select_engine(chosen, checkpoint.load_hf_config(), on_gpu=chosen.device != "cpu")
    if engine != "fast":
        hint = "use engine=auto, device=auto and a model that the fast engine runs (docs/models.md)"
        raise UsageError(f"no kernels to compile: {reason}", where="setup", hint=hint)
    request = build_request(chosen, checkpoint, _SLOTS)
    if compile_ahead.is_compiled(request):
        terminal.print("kernels    compiled already")
        return 0
    compile_ahead.request(request)
    try:
        compiler = compile_ahead.get_compiler()
        if compiler is None:
            hint = "raise the limit on processes (ulimit -u), or end other programs"
            raise LorgnetteError("cannot start the process that compiles kernels", where="this machine", hint=hint)
        show_progress(compiler, terminal)
    finally:
        compile_ahead.stop()
    if compiler.error:
        hint = "Triton needs a C compiler, gcc or clang, and Python's headers"
        raise LorgnetteError(f"kernels cannot be compiled: {compiler.error}", where="this machine", hint=hint)
    return compiler.compiled
