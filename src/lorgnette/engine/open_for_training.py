"""Opens the fast engine for a training: loads weights, warms up kernels and initializes the adapter on threads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lorgnette.config import LoraSettings
from lorgnette.device import release_workspaces
from lorgnette.distributed import World
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import NO_MODULES, allocate_decoder, load_decoder
from lorgnette.features.image_features import Features
from lorgnette.kernels import compile_ahead
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import Decoder, find_tower_class
from lorgnette.models.registry import VisionConfig, parse_configs
from lorgnette.models.weight_loader import list_nf4_modules
from lorgnette.planning.limits import MAX_PATCHES_PER_CALL, WARMUP_LAYERS
from lorgnette.planning.memory import MemoryFit
from lorgnette.types import ImageGrid, PackedBatch


class PendingEngine(NamedTuple):
    """Both waits raise LorgnetteError if files are broken or do not fit. build_engine captures the first graphs; what
    is free for them is known once the decoder is there."""

    wait_for_tower: Callable[[], object]
    wait_for_decoder: Callable[[], Decoder]
    build_engine: Callable[[Decoder, MemoryFit, Sequence[PackedBatch]], FastEngine]


def open_for_training(
    checkpoint: BaseCheckpoint,
    lora: LoraSettings,
    features: Features,
    dtype: torch.dtype,
    *,
    seed: int,
    resume_from: Path | None,
    group_by_image: bool,
    fit: MemoryFit,
    first_batches: Sequence[PackedBatch],
    repeats: float = 1.0,
    world: World = World(),
) -> PendingEngine:
    """Start loading a model that will be trained, and return at once.

    The caller computes image features meanwhile. Who waits for whom (│ waits for what is left of it):

        load         tower weights ──────────┬─ decoder weights ─────────────────┐
        warm tower   tower kernels ──────────┤                                   │
        warm decoder decoder kernels ────────┤                                   │
        init adapter (memory zeroed) values ─│───────────────────────────────────│─────────┐
        caller       open_for_training ······│ wait_for_tower, features ·········│ capture │ sync_weights
                                                                 wait_for_decoder │ build_engine

    The tower and the two warm-ups only run on CUDA, the tower only if no image's features are on disk. The tower's
    weights are read before the decoder's, because the features need them first. If memory is too short for all of it at
    once (fit.is_loaded_in_turn), warm-ups, tower and decoder come one after the other.

    resume_from: the folder of a checkpoint or an adapter to start from. first_batches: micro-batches of the first
    steps. repeats: as of `FastEngine.capture_ahead`. world: the ranks over which the layers are cut, if the fit
    says so.
    """
    (text_config, vision_config), device = parse_configs(checkpoint.load_hf_config()), features.device
    shape, is_cuda = AdapterShape.from_settings(text_config, lora), device.type == "cuda"
    load, init, warm_tower, warm_decoder = (
        ThreadPoolExecutor(1, name) for name in ("load", "init adapter", "warm tower", "warm decoder")
    )
    lazy_tower = features.lazy_tower if is_cuda and first_batches[0].grids else None

    # The adapter's values, on a stream of their own, once this stream has zeroed its memory. They stay, so they come
    # first: in a part of what a warm-up leaves they would keep the rest of it from everyone.
    adapter = FlatLoraParams(shape, device)
    zeroed = torch.cuda.current_stream(device).record_event() if is_cuda else None
    adapter_init = init.submit(_init_adapter, adapter, seed, resume_from, zeroed)

    # Kernels, while the weights are read.
    warmups: list[Future[None]] = []
    if lazy_tower is not None:
        warmups.append(warm_tower.submit(_warm_up, warm_up_tower, vision_config, first_batches[0].grids, device, dtype))
    if is_cuda:
        options = (dtype, lora.dropout, list_nf4_modules(checkpoint), repeats)
        warmups.append(warm_decoder.submit(_warm_up, warm_up_decoder, shape, first_batches, features, *options))

    if fit.is_loaded_in_turn:
        wait(warmups)
        release_workspaces()

    # Weights, on one thread: the tower's, then the decoder's.
    if lazy_tower is not None:
        lazy_tower.start_loading(load, warmups)
    read_decoder = partial(
        load_decoder, checkpoint, shape, device, dtype, shard_over=world if fit.num_shards > 1 else None
    )
    decoder = None if fit.is_loaded_in_turn else load.submit(read_decoder)
    pinning = load.submit(_pin_host_memory, adapter, world)

    for pool in (load, init, warm_tower, warm_decoder):
        pool.shutdown(wait=False)

    def load_alone() -> Decoder:
        release_workspaces()  # the tower's
        return read_decoder()

    def wait_for_decoder() -> Decoder:
        for warmup in warmups:
            warmup.result()
        loaded = decoder.result() if decoder else load_alone()
        release_workspaces()  # a graph's memory cannot be what tower and warm-ups left
        return loaded

    def build_engine(loaded: Decoder, fit: MemoryFit, batches: Sequence[PackedBatch]) -> FastEngine:
        options: dict[str, Any] = {"group_by_image": group_by_image, "recompute_layers": fit.recompute_layers}
        engine = FastEngine(loaded, adapter, features, dropout=lora.dropout, **options)
        # The graphs leave room for AdamW's two moments, which come next: a step can be split, the optimizer cannot.
        moments = torch.empty(2, shape.num_params, device=device) if is_cuda else None
        # The replay inside may read a half-initialized adapter: nothing of it is kept, and the copy below follows.
        engine.capture_ahead(batches, fit.pool_bytes, repeats)
        del moments
        pinning.result()
        adapter_init.result()
        engine.sync_weights()
        return engine

    return PendingEngine(lambda: lazy_tower and lazy_tower.tower, wait_for_decoder, build_engine)


def _pin_host_memory(adapter: FlatLoraParams, world: World) -> None:
    """Pin memory for copies of the adapter: what the weights were read through, and more if the adapter is larger.

    Rank 0 alone copies the adapter.
    """
    if world.is_main:
        adapter.pin_host_memory()


def _warm_up(function: Callable[..., None], *arguments: Any) -> None:
    """Call a warm-up once other processes have compiled the kernels; not if the command ends meanwhile."""
    if compile_ahead.wait():
        function(*arguments)


def warm_up_tower(config: VisionConfig, grids: Iterable[ImageGrid], device: torch.device, dtype: torch.dtype) -> None:
    """Compile, load and select the tower's kernels: run one block on zeros, with as many patches as the largest call.

    The first call of a kernel is slow: Triton compiles it or reads its cache, the driver loads it, cuBLAS selects among
    its variants. The widths are the real ones, so that the same kernels are selected. Does nothing if memory is short.
    grids: some that will come; they are repeated.
    """
    # Blocks of either kind of attention have the same kernels; a level of features has a norm of its own.
    levels = (0,) if config.deepstack_blocks else ()
    small, tower_class = replace(config, depth=1, deepstack_blocks=levels), find_tower_class(config.model_type)
    with suppress(torch.OutOfMemoryError):
        weights, _ = tower_class.allocate_weights(small, device, dtype)
        call, num_patches = list[ImageGrid](), 0
        for grid in cycle(grids):
            if num_patches + grid.t * grid.h * grid.w > MAX_PATCHES_PER_CALL:
                break
            call.append(grid)
            num_patches += grid.t * grid.h * grid.w
        tower_class(small, weights)(call, torch.zeros(num_patches, small.patch_dim, device=device, dtype=dtype))


def warm_up_decoder(
    shape: AdapterShape,
    batches: Sequence[PackedBatch],
    features: Features,
    dtype: torch.dtype,
    dropout: float,
    nf4_modules: Mapping[str, bool] = NO_MODULES,
    repeats: float = 1.0,
) -> None:
    """The same for the decoder: a few layers forward and backward as in training, and forward as in evaluation.

    nf4_modules: as of `allocate_decoder`. repeats: as of `FastEngine.capture_ahead`.
    """
    small = replace(shape, text=replace(shape.text, num_layers=WARMUP_LAYERS))
    with suppress(torch.OutOfMemoryError):
        decoder, weights = allocate_decoder(small, features.device, dtype, nf4_modules)
        torch._foreach_zero_([weight for weight in weights.values() if isinstance(weight, torch.Tensor)])  # NF4 is 0
        adapter = FlatLoraParams(small, features.device)
        FastEngine(decoder, adapter, features, dropout=dropout).warmup(batches, repeats)


def _init_adapter(
    adapter: FlatLoraParams, seed: int, resume_from: Path | None, zeroed: torch.cuda.Event | None
) -> None:
    """Write the adapter's first values, or those of a folder. zeroed: on CUDA, the event after its memory is 0."""
    stream = torch.cuda.Stream(adapter.values.device) if zeroed else None  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):  # not behind the tower's images
        if stream is not None and zeroed is not None:
            stream.wait_event(zeroed)
        if resume_from is None:
            adapter.copy_from(FlatLoraParams.init_values(adapter.shape, seed))
        else:
            saved = SavedAdapter.load(resume_from)
            saved.build_shape(adapter.shape.text)
            adapter.load_state_dict(saved.state)
        if stream is not None:
            stream.synchronize()
