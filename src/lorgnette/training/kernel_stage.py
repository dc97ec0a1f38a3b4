"""When a training compiles its kernels: from the start of the command, in other processes. Needs no torch."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lorgnette.config import Settings
from lorgnette.engine.select import select_engine
from lorgnette.kernels import DECODE_SPLIT_SIZE, compile_ahead
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.planning.limits import SAMPLE_TOKENS, pad_slots
from lorgnette.processing.encoded_rows import RowSizes
from lorgnette.report.console import Terminal
from lorgnette.report.stage_timer import StageTimer
from lorgnette.training.data_module import TrainingData


@contextmanager
def compile_kernels_ahead(settings: Settings) -> Iterator[None]:
    """Start the process that compiles, if this GPU has compiled nothing yet; end what is left of it at the end."""
    try:
        compile_ahead.start(settings.device, settings.engine)
        yield
    finally:
        compile_ahead.stop()


def request_kernels(settings: Settings, data: TrainingData) -> None:
    """Compile what this training needs, while torch is imported and weights are read."""
    engine, _ = select_engine(settings, data.checkpoint.load_hf_config(), on_gpu=True)
    if engine != "fast" or not compile_ahead.is_wanted(settings.device, settings.engine):
        compile_ahead.stop()
        return
    sizes = RowSizes.from_examples(data.held_out)
    longest = int((sizes.lengths - sizes.num_labels).max(initial=0))
    new_tokens = {SAMPLE_TOKENS, settings.predict.max_new_tokens} if longest else set()
    slots = {round_slots(pad_slots(longest + count)) for count in new_tokens}
    compile_ahead.request(build_request(settings, data.checkpoint, slots))


def round_slots(slots: int) -> int:
    """The largest KV cache with the same kernels: those whose attention is computed in as many parts."""
    return slots if slots <= DECODE_SPLIT_SIZE else math.ceil(slots / DECODE_SPLIT_SIZE) * DECODE_SPLIT_SIZE


def build_request(settings: Settings, checkpoint: BaseCheckpoint, slots: Iterable[int]) -> compile_ahead.KernelRequest:
    """What a training compiles. slots: of the KV caches of its answers."""
    lora, folder = settings.lora.model_dump(mode="json"), str(checkpoint.folder.resolve())
    return compile_ahead.KernelRequest(folder, settings.dtype, lora, settings.quantization, tuple(sorted(slots)))


def wait_for_kernels(timer: StageTimer, terminal: Terminal) -> None:
    """Wait until all are compiled, and show how many are. Nothing if none have to be."""
    compiler = compile_ahead.get_compiler()
    if compiler is not None and not compiler.is_done:
        with timer("kernels"):
            show_progress(compiler, terminal)
        if compiler.error:
            terminal.warn(f"kernels are compiled one after another, since other processes cannot: {compiler.error}")


def show_progress(compiler: compile_ahead.KernelCompiler, terminal: Terminal) -> None:
    """Say how many kernels are compiled, until all are."""
    while not (compiler.found or compiler.is_done):
        compiler.poll(compile_ahead.POLL_SECONDS)
    if compiler.found:
        terminal.print(f"kernels    compiles {compiler.found} for this GPU, once")
    with terminal.show_progress("kernels", compiler.found) as advance:
        shown = 0
        while shown < compiler.compiled or not compiler.is_done:
            compiler.poll(compile_ahead.POLL_SECONDS)
            advance(compiler.compiled - shown)
            shown = compiler.compiled
