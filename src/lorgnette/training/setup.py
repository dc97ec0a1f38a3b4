"""The engine of a training: ours where it computes what is asked for, else transformers' and PEFT's, saying why."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch

from lorgnette.device import select_device, select_dtype
from lorgnette.engine import loading
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.errors import LorgnetteError
from lorgnette.features.disk_cache import FeatureDiskCache, open_disk_cache
from lorgnette.features.image_features import Features
from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig, load_hf_config
from lorgnette.planning.memory import GIB, MemoryFit, Workload, compute_usable_bytes, find_fit
from lorgnette.training import optimizer
from lorgnette.training.data_module import TrainingData
from lorgnette.training.job import Job
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.trainer import Engine
from lorgnette.types import ImageGrid

NUM_EXAMPLES_AHEAD = 1024
"""Of the first steps: one pass is recorded that has room for them all."""

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainingSetup:
    """A model in training: what the loop steps, what answers, a copy of the adapter's factors as they are when asked
    for, the material without the rows whose pictures could not be decoded, and the most tokens that a pass may hold."""

    engine: Engine
    model: Union[loading.FastModel, "PeftModel"]
    copy_adapter: Callable[[], Mapping[str, torch.Tensor]]
    features: Features
    data: TrainingData
    max_tokens_per_microbatch: int


def build_training(job: Job, checkpoint: Path | None, *, extra_grids: Sequence[ImageGrid] = ()) -> TrainingSetup:
    """The model in its place, its pictures' features made. saved: the checkpoint of a run that goes on; beside:
    pictures that are not the data's.

    Raises LorgnetteError where files are broken, and UsageError where an engine was asked for that cannot do it.
    """
    device = select_device(job.settings.device)
    dtype = select_dtype(job.settings.dtype, device)
    engine, why = select_engine(job.settings, load_hf_config(job.material.checkpoint), on_gpu=device.type == "cuda")
    job.terminal.print(f"engine     {engine}{f' ({why})' if why else ''}")
    return (_build_fast if engine == "fast" else _build_reference)(job, checkpoint, device, dtype, extra_grids)


def build_sampler(job: Job) -> BatchSampler:
    """The training's."""
    chosen = job.settings
    return BatchSampler.from_settings(
        job.material.examples, chosen.train, chosen.seed, group_by_image=chosen.data.group_by_image
    )


def _build_fast(
    job: Job, saved: Path | None, device: torch.device, dtype: torch.dtype, beside: Sequence[ImageGrid]
) -> TrainingSetup:
    chosen, checkpoint = job.settings, job.material.checkpoint
    features = loading.build_features(
        checkpoint, job.material.processor.image_processor, device, dtype, _open_disk_cache(job, device, dtype)
    )
    grouped = chosen.data.group_by_image
    share = select_prefix_sharing(chosen, "fast")
    room = fit_to_memory(job, device)
    coming = build_sampler(job).first_steps(NUM_EXAMPLES_AHEAD, room.max_tokens, share)
    pool = ThreadPoolExecutor(1, "warming optimizer")
    stepping = pool.submit(optimizer.warm_up_optimizer, device, chosen.train)
    pool.shutdown(wait=False)
    opening = loading.PendingEngine(
        checkpoint, chosen.lora, features, dtype, seed=chosen.seed, resume_from=saved, group_by_image=grouped, recompute_layers=room.recompute_layers,
        first_batches=coming,
    )  # fmt: skip
    features.start_decoding([*job.material.grids, *beside])
    with job.stages("weights"):  # the tower's; the decoder's are read while features are made
        opening.wait_for_tower()
    material = compute_image_features(job, features, beside)
    with job.stages("engine"):  # the device may still be busy with features
        stepping.result()  # nobody loads kernels while a pass is recorded
        engine = opening.wait_for_engine()
        _synchronize(device)
    model = loading.FastModel(engine.decoder, engine.adapter, features)
    return TrainingSetup(engine, model, engine.adapter.copy_to_cpu, features, material, room.max_tokens)


def _build_reference(
    job: Job, saved: Path | None, device: torch.device, dtype: torch.dtype, beside: Sequence[ImageGrid]
) -> TrainingSetup:
    with job.stages("transformers"):
        from lorgnette.engine import hf_loading as weights
        from lorgnette.engine import peft_adapter as adapters
        from lorgnette.engine.peft_engine import ReferenceEngine
        from lorgnette.features.image_features import HfVisionTower

    chosen, checkpoint, rule = job.settings, job.material.checkpoint, job.material.processor.image_processor
    with job.stages("weights"):
        base = weights.load_base_model(checkpoint, device, dtype)
    features = Features(HfVisionTower(base), rule, is_live=set(chosen.lora.parts) != {"language"})
    material = compute_image_features(job, features, beside)
    with job.stages("adapter"):
        _synchronize(device)
        if saved is None:
            model = adapters.add_adapter(base, checkpoint.family, chosen.lora, chosen.seed)
            torch.manual_seed(chosen.seed)  # where dropout's random numbers start, on the CPU and on CUDA
        else:
            model = adapters.load_adapter(base, saved, is_trainable=True)
    engine, rows = ReferenceEngine(model, features), chosen.train.max_tokens_per_microbatch
    return TrainingSetup(engine, model, lambda: adapters.copy_adapter_state(model), features, material, rows)


def _synchronize(device: torch.device) -> None:
    """Wait for what was launched, so that the steps' seconds are their own."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def fit_to_memory(job: Job, device: torch.device) -> MemoryFit:
    """Passes and recomputed layers that the device's free memory holds, by the memory model's word: nothing is lowered
    where all fits. Where nothing would, the smallest, and an out-of-memory error may say so."""
    chosen, material = job.settings, job.material
    encoded = [*material.examples, *material.held_out]
    longest = max(len(e.input_ids) for e in encoded)
    most = max(chosen.train.max_tokens_per_microbatch, longest)
    if device.type == "cpu":
        return MemoryFit(most, 0, 0)
    per_step = chosen.train.batch_size
    config, rows = load_hf_config(material.checkpoint), min(most, per_step * longest)
    held_out = min(most, sum(len(e.input_ids) for e in material.held_out))
    work = Workload(
        "fast", TextConfig.from_hf_config(config), VisionConfig.from_hf_config(config), chosen.lora.target_modules, chosen.lora.rank,
        has_dropout=chosen.lora.dropout > 0, tokens=rows, labels=min(rows, per_step * max(e.num_labels for e in encoded)),
        bytes_per_value=4 if chosen.dtype == "float32" else 2, tower_residency="while features are made", num_graphs=2,
        eval_tokens=held_out, eval_labels=held_out, feature_tokens=sum(grid.num_tokens for grid in material.grids),
    )  # fmt: skip
    free = compute_usable_bytes(torch.cuda.mem_get_info(device)[0] / GIB)
    found = find_fit(work, longest, free) or MemoryFit(longest, work.text.num_layers, free)
    if found.recompute_layers or found.max_tokens < rows:
        again = (
            f", {found.recompute_layers} of {work.text.num_layers} layers run twice" if found.recompute_layers else ""
        )
        job.terminal.print(
            f"memory     {free / GIB:.1f} GiB are free: passes of at most {found.max_tokens} tokens{again}"
        )
        return found
    return MemoryFit(most, 0, found.peak_bytes)


def compute_image_features(job: Job, features: Features, beside: Sequence[ImageGrid]) -> TrainingData:
    """The pictures' features made; the material without those that could not be decoded."""
    grids = [*job.material.grids, *beside]
    with job.stages("features"), job.terminal.show_progress("pictures", len(grids)) as advance:
        failed = features.prepare(grids, on_progress=advance)
        features.release_tower()
    job.stages.record("decoding", features.decode_wait_seconds)
    return job.material.drop_images(failed, job.settings.data.on_bad_row, job.terminal)


def _open_disk_cache(job: Job, device: torch.device, dtype: torch.dtype) -> FeatureDiskCache | None:
    """Features on disk, where they can be kept."""
    try:
        return open_disk_cache(job.material.checkpoint, job.material.processor.image_processor, device, dtype)
    except LorgnetteError as error:
        job.terminal.warn(f"features are not kept on disk: {error}")
        return None
