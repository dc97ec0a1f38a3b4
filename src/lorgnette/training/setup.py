"""Builds the model that is trained: engine, adapter, image features, size of a micro-batch."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch

from lorgnette.config import Settings
from lorgnette.device import measure_available_bytes
from lorgnette.distributed import World
from lorgnette.engine import loading
from lorgnette.engine.base import Engine
from lorgnette.engine.open_for_training import open_for_training
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.errors import LorgnetteError
from lorgnette.features.disk_cache import FeatureDiskCache, open_disk_cache, open_exchange
from lorgnette.features.image_features import Features
from lorgnette.features.pipeline import FeaturePipeline
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import has_known_sizes, parse_configs
from lorgnette.planning.memory import (
    GIB,
    EngineName,
    MemoryFit,
    Workload,
    can_overlap_features,
    compute_free_bytes,
    compute_left_bytes,
    find_fit,
)
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.report.console import ProgressCallback, Terminal
from lorgnette.report.stage_timer import StageTimer
from lorgnette.training.batch_stats import count_steps
from lorgnette.training.checkpoint import read_max_tokens
from lorgnette.training.data_module import TrainingData
from lorgnette.training.feature_stage import FeatureStage
from lorgnette.training.kernel_stage import wait_for_kernels
from lorgnette.training.optimizer import warm_up_optimizer
from lorgnette.training.sampler import BatchSampler
from lorgnette.types import ImageGrid

if TYPE_CHECKING:
    from peft import PeftModel

NUM_EXAMPLES_AHEAD, NUM_EXAMPLES_AHEAD_OF_RANKS = 1024, 4096
"""Examples of the first steps, whose largest micro-batch sets the shape of the first CUDA graph."""
_NUM_CONNECTING = 2**24
"""As many as a small adapter has: few numbers take other ways."""


@dataclass(frozen=True)
class TrainingSetup:
    """A model ready to train.

    engine: what the trainer steps; model: what generates answers; copy_adapter: copies the LoRA factors to the CPU;
    start_copy: starts such a copy, and returns what waits for it, on any thread; load_adapter: puts a copy in their
    place; release_memory: frees what only steps need; data: without the rows whose images cannot be decoded. pipeline:
    makes the features that are not there yet, beside the steps.
    """

    engine: Engine
    model: Union[loading.FastModel, "PeftModel"]
    copy_adapter: Callable[[], Mapping[str, torch.Tensor]]
    start_copy: Callable[[], Callable[[], Mapping[str, torch.Tensor]]]
    load_adapter: Callable[[Mapping[str, torch.Tensor]], None]
    release_memory: Callable[[], None]
    features: Features
    data: TrainingData
    max_tokens_per_microbatch: int
    pipeline: FeaturePipeline | None = None

    def close(self) -> LorgnetteError | None:
        """As `Features.close`."""
        if self.pipeline is not None:
            self.pipeline.close()
        return self.features.close()


def build_training(
    settings: Settings,
    data: TrainingData,
    device: torch.device,
    dtype: torch.dtype,
    *,
    resume_from: Path | None,
    step: int = 0,
    extra_grids: Sequence[ImageGrid] = (),
    timer: StageTimer,
    terminal: Terminal,
    world: World = World(),
    on_image: ProgressCallback = lambda count, note="": None,
) -> TrainingSetup:
    """Load the weights, add the adapter and encode the images; of many images those that the first step needs.

    resume_from: a checkpoint's folder; without one, training starts from `settings.adapter`, if set. step: where the
    training goes on. extra_grids, on_image: as of FeatureStage. Every rank of the world calls this, and encodes its
    share of the images. Raises LorgnetteError for broken files, UsageError if engine=fast cannot train this model.
    """
    engine, reason = select_engine(settings, data.checkpoint.load_hf_config(), on_gpu=device.type == "cuda")
    terminal.print(f"engine     {engine}{f' ({reason})' if reason else ''}")
    sampler = BatchSampler(data.examples, settings.train, settings.seed, group_by_image=settings.data.group_by_image)
    stage = FeatureStage(settings, data, sampler, extra_grids, timer, terminal, world, on_image)

    # Size the micro-batches.
    kept_tokens = read_max_tokens(resume_from) if resume_from else None
    in_dtype = settings.model_copy(update={"dtype": f"{dtype}".removeprefix("torch.")})

    def fit_memory(loaded: MemoryFit | None = None) -> MemoryFit:
        fit = fit_to_memory(in_dtype, data, sampler, engine, device, terminal, kept_tokens, loaded, world)
        return take_smallest_microbatches(fit, terminal, world)

    with timer("fit", is_printed=False):
        fit = fit_memory()
    if fit.num_shards > 1:
        text = f"each of {fit.num_shards} GPUs holds a part of every layer, and gathers the one that computes"
        terminal.print(f"layers     {text}")
    with ExitStack() as on_error:
        if engine == "reference":
            setup = _build_reference(settings, stage, device, dtype, resume_from, fit, on_error)
        else:
            setup = _build_fast(settings, stage, device, dtype, resume_from, step, fit, fit_memory, on_error)
        on_error.pop_all()
        return setup


def _build_fast(
    settings: Settings,
    stage: FeatureStage,
    device: torch.device,
    dtype: torch.dtype,
    resume_from: Path | None,
    step: int,
    fit: MemoryFit,
    fit_memory: Callable[[MemoryFit], MemoryFit],
    on_error: ExitStack,
) -> TrainingSetup:
    """on_error: closes what this has opened if it raises an error, which in a notebook would keep it open."""
    data, sampler, timer, terminal, world = stage.data, stage.sampler, stage.timer, stage.terminal, stage.world

    # Pack the first steps: they determine the CUDA graphs to capture.
    prefix_sharing = select_prefix_sharing(settings, "fast")
    pack_first = partial(sampler.pack_first_steps, prefix_sharing=prefix_sharing, num_ranks=world.size)
    num_ahead = NUM_EXAMPLES_AHEAD if world.size == 1 else NUM_EXAMPLES_AHEAD_OF_RANKS
    with timer("packing", is_printed=False):
        first_batches = pack_first(num_ahead, fit.max_tokens)

    # Start everything on threads: optimizer kernels, weights, adapter, image decoding.
    image_processor = data.processor.image_processor
    disk_cache = _open_disk_cache(data.checkpoint, image_processor, device, dtype, world, terminal)
    features = loading.build_features(data.checkpoint, image_processor, device, dtype, disk_cache)
    on_error.callback(features.close)
    _, vision = parse_configs(data.checkpoint.load_hf_config())
    extra_tokens = sum(grid.num_tokens for grid in stage.extra_grids)
    features.limit_device_bytes(fit.feature_bytes + extra_tokens * vision.feature_width * dtype.itemsize)
    pool = ThreadPoolExecutor(1, "warm up optimizer")
    optimizer_warmup = pool.submit(warm_up_optimizer, device, dtype, settings.train)
    pool.shutdown(wait=False)
    if fit.is_loaded_in_turn:
        wait_for_kernels(timer, terminal)  # the next call waits for them, and shows nothing
    pending = open_for_training(
        data.checkpoint, settings.lora, features, dtype, seed=settings.seed,
        resume_from=resume_from or settings.adapter, group_by_image=settings.data.group_by_image,
        fit=fit, first_batches=first_batches, repeats=count_repeats(sampler, num_ahead, world),
        world=world,
    )  # fmt: skip
    pipeline = None
    with timer("order", is_printed=False):
        if fit.keeps_tower:
            pipeline = stage.start_pipeline(features, step)
            on_error.callback(pipeline.close)
        else:
            stage.start(features)

    wait_for_kernels(timer, terminal)

    # The vision tower first: the decoder is read while it computes features.
    with timer("weights"):
        pending.wait_for_tower()
    usable_data = stage.run(features, pipeline)
    if num_damaged := sum(world.gather_objects(disk_cache.num_damaged if disk_cache else 0)):
        terminal.warn(f"features of {num_damaged} images were damaged on disk, and are computed again")

    if features.num_unshared:
        text = f"each GPU makes the features of {features.num_unshared} images of the others again"
        terminal.warn(f"{text}: the disk cache does not take them")

    # The optimizer's kernels must be loaded before a graph is captured. The device may still compute features.
    with timer("engine"):
        optimizer_warmup.result()
        decoder = pending.wait_for_decoder()
        if decoder.shards is not None:
            decoder.shards.connect()
            decoder.shards.run_empty_pass(backward=False)  # if NCCL gathers: it takes memory with the first gathers
        refit = fit_memory(fit)
        if refit.max_tokens < fit.max_tokens:
            first_batches = pack_first(num_ahead, refit.max_tokens)
        fast = pending.build_engine(decoder, refit, first_batches)
        _synchronize(device)
    model = loading.FastModel(fast.decoder, fast.adapter, features)
    copy_adapter, start_copy, load_adapter, release, max_tokens = (
        fast.adapter.copy_to_cpu, fast.adapter.start_copy, fast.load_adapter, fast.drop_graphs, refit.max_tokens
    )  # fmt: skip
    return TrainingSetup(
        fast, model, copy_adapter, start_copy, load_adapter, release, features, usable_data, max_tokens, pipeline
    )  # fmt: skip


def _open_disk_cache(
    checkpoint: BaseCheckpoint,
    image_processor: ImageProcessor,
    device: torch.device,
    dtype: torch.dtype,
    world: World,
    terminal: Terminal,
) -> FeatureDiskCache | None:
    """The set of features on disk, or None. If a rank cannot open it, all exchange features in a temporary folder."""
    disk_cache = None
    try:
        disk_cache = open_disk_cache(checkpoint, image_processor, device, dtype)
    except LorgnetteError as error:
        terminal.warn(f"image features are not cached on disk: {error}")
    if world.size == 1 or all(world.gather_objects(disk_cache is not None)):
        return disk_cache
    if disk_cache is not None:
        disk_cache.close()
    return open_exchange(parse_configs(checkpoint.load_hf_config())[1].feature_width, dtype, world)


def _build_reference(
    settings: Settings,
    stage: FeatureStage,
    device: torch.device,
    dtype: torch.dtype,
    resume_from: Path | None,
    fit: MemoryFit,
    on_error: ExitStack,
) -> TrainingSetup:
    """on_error: as of `_build_fast`."""
    data, timer, world = stage.data, stage.timer, stage.world
    with timer("transformers"):
        from lorgnette.engine import peft_engine
        from lorgnette.engine.fsdp_layers import load_sharded_model
        from lorgnette.features.image_features import HfVisionTower

    shards = None
    with timer("weights"):
        if fit.num_shards == 1:
            base = peft_engine.load_base_model(data.checkpoint, device, dtype)
        else:
            model, shards = load_sharded_model(data.checkpoint, settings, resume_from, device, dtype, world)
            base = model.get_base_model()
    is_live = set(settings.lora.parts) != {"language"}  # a trained tower or merger computes new features every step
    tower, exchange, hf_config = HfVisionTower(base), None, data.checkpoint.load_hf_config()
    if world.size > 1 and not is_live and has_known_sizes(hf_config):
        exchange = open_exchange(parse_configs(hf_config)[1].feature_width, tower.dtype, world)
    features = Features(tower, data.processor.image_processor, is_live=is_live, disk_cache=exchange)
    on_error.callback(features.close)
    data = stage.run(features)
    with timer("adapter"):
        _synchronize(device)
        if resume_from is None:
            if shards is None:
                model = peft_engine.add_adapter(base, data.checkpoint.family, settings.lora, settings.seed)
            if settings.adapter is not None:
                peft_engine.set_adapter_state(model, SavedAdapter.load(settings.adapter).state)
            torch.manual_seed(settings.seed)  # dropout's sequence starts here, on the CPU and on CUDA
        elif shards is None:
            model = peft_engine.load_adapter(base, resume_from, is_trainable=True)
    engine = peft_engine.ReferenceEngine(model, features, shards)
    copy_adapter = partial(peft_engine.copy_adapter_state, model)

    def start_copy() -> Callable[[], Mapping[str, torch.Tensor]]:
        copy = copy_adapter()
        return lambda: copy

    load_adapter = partial(peft_engine.set_adapter_state, model)
    release = torch.cuda.empty_cache
    return TrainingSetup(engine, model, copy_adapter, start_copy, load_adapter, release, features, data, fit.max_tokens)


def count_repeats(sampler: BatchSampler, num_examples_ahead: int, world: World) -> float:
    """How often one rank has as many micro-batches in the run as all ranks have in the steps that are packed ahead."""
    return max(1.0, sampler.total_steps * sampler.batch_size / num_examples_ahead) / world.size


def take_smallest_microbatches(fit: MemoryFit, terminal: Terminal, world: World) -> MemoryFit:
    """The fit, with the micro-batches of the rank that has the least memory: all ranks cut the held-out examples alike,
    and deal the pieces."""
    smallest = min(world.gather_objects(fit.max_tokens))
    if smallest < fit.max_tokens:
        terminal.print(f"memory     another GPU has less: micro-batches of at most {smallest} tokens")
    return replace(fit, max_tokens=smallest)


def fit_to_memory(
    settings: Settings,
    data: TrainingData,
    sampler: BatchSampler,
    engine: EngineName,
    device: torch.device,
    terminal: Terminal,
    kept_tokens: int | None = None,
    loaded: MemoryFit | None = None,
    world: World = World(),
) -> MemoryFit:
    """The micro-batch size and the number of recomputed layers that the memory model predicts to fit.

    kept_tokens: of the micro-batches of the run that is resumed. They stay as large, whatever memory is free: others
    draw other dropout masks and round otherwise. loaded: the fit with which weights and features were loaded. It is
    kept if it still fits, now that kernels are there too. Nothing is reduced if everything fits. If nothing does, the
    smallest is tried, and may run out of memory. Either all ranks of the world cut the layers, or none does.
    """
    longest = max(int(part.sizes.lengths.max(initial=0)) for part in (data.examples, data.held_out))
    max_tokens, least = max(settings.train.max_tokens_per_microbatch, longest), longest
    if kept_tokens is not None:
        max_tokens = min(kept_tokens, max_tokens)
        least = max(longest, max_tokens)
        train = settings.train.model_copy(update={"max_tokens_per_microbatch": max_tokens})
        settings = settings.model_copy(update={"train": train})
    config, can_pack = data.checkpoint.load_hf_config(), data.checkpoint.family.can_pack
    if device.type != "cuda" or not has_known_sizes(config):
        return loaded or MemoryFit(
            max_tokens, 0, 0, num_shards=_select_num_shards(settings, engine, can_pack, world, lambda: True),
            keeps_tower=can_overlap_features(settings, engine, len(data.grids), world.size),
        )  # fmt: skip
    if loaded is None:
        _connect_gpus(world, device)
        free = compute_free_bytes(torch.cuda.mem_get_info(device)[0], has_context=True, num_gpus=world.size)
    else:
        free = compute_left_bytes(measure_available_bytes(device), world.size)
        if loaded.peak_bytes <= free:
            return loaded
    prefix_sharing = select_prefix_sharing(settings, engine)
    max_tokens_set = settings.train.max_tokens_per_microbatch
    steps = count_steps(sampler, max_tokens_set, prefix_sharing=prefix_sharing, num_ranks=world.size)
    workload = Workload.from_settings(
        settings, config, engine, steps.largest_microbatch, data.held_out, data.grids, world.size
    )

    def fits_whole() -> bool:
        return workload.nf4_values > 0 or find_fit(workload, least, free) is not None

    num_shards = loaded.num_shards if loaded else _select_num_shards(settings, engine, can_pack, world, fits_whole)
    workload = replace(workload, num_shards=num_shards)
    fit = find_fit(workload, least, free, loaded)
    if fit is None:
        # The smallest, which may fit all the same: memory is then taken as it is needed.
        layers = workload.text.num_layers if engine == "fast" else 0
        keeps_tower = loaded is not None and loaded.keeps_tower
        fit = MemoryFit(
            least, layers, free, is_loaded_in_turn=True, num_shards=num_shards, keeps_tower=keeps_tower
        )  # fmt: skip
    if kept_tokens is not None:
        fit = replace(fit, max_tokens=max_tokens)
    if loaded is not None and (fit.max_tokens, fit.recompute_layers) == (loaded.max_tokens, loaded.recompute_layers):
        return fit
    if fit.recompute_layers == 0 and fit.max_tokens >= workload.max_tokens:
        return replace(fit, max_tokens=max_tokens)
    terminal.print(f"memory     {free / GIB:.1f} GiB free: {_describe_fit(fit, workload)}")
    return fit


def _describe_fit(fit: MemoryFit, workload: Workload) -> str:
    text = f"micro-batches of at most {fit.max_tokens} tokens"
    if fit.recompute_layers:
        text += f", {fit.recompute_layers} of {workload.text.num_layers} layers recomputed"
    return text


def _select_num_shards(
    settings: Settings, engine: EngineName, can_pack: bool, world: World, fits_whole: Callable[[], bool]
) -> int:
    """Over how many ranks the layers are cut: all, or 1, which is not at all. The same on every rank.

    can_pack: of the family (models/family.py). fits_whole: whether this rank can hold all of every layer.
    """
    choice = settings.train.fully_shard
    if world.size == 1 or choice is False or (engine == "reference" and not can_pack):
        return 1
    return 1 if choice == "auto" and all(world.gather_objects(fits_whole())) else world.size


def _connect_gpus(world: World, device: torch.device) -> None:
    """Sum numbers over the ranks, as a step does: NCCL takes its memory with the first sum."""
    if world.size > 1 and device.type == "cuda":
        world.all_reduce(torch.zeros(_NUM_CONNECTING, device=device))
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _synchronize(device: torch.device) -> None:
    """Wait for launched work, so that it is not counted as the steps' time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
