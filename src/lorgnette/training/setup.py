"""The engine of a training: ours where it computes what is asked for, else transformers' and PEFT's, saying why."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch

from lorgnette.device import device_of, dtype_of
from lorgnette.engine import loading
from lorgnette.engine.select import engine_for, share_of
from lorgnette.errors import LorgnetteError
from lorgnette.features.disk_cache import Store, store_of
from lorgnette.features.image_features import Features
from lorgnette.models.qwen2_vl.config import TextShape, VisionShape, config_of
from lorgnette.planning.memory import GIB, Fit, Work, fit, usable
from lorgnette.training import optimizer
from lorgnette.training.data_module import Material
from lorgnette.training.job import Job
from lorgnette.training.sampler import Batches
from lorgnette.training.trainer import Engine
from lorgnette.types import PictureGrid

EXAMPLES_AHEAD = 1024
"""Of the first steps: one pass is recorded that has room for them all."""

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Tuned:
    """A model in training: what the loop steps, what answers, a copy of the adapter's factors as they are when asked
    for, the material without the rows whose pictures could not be decoded, and the most tokens that a pass may hold."""

    engine: Engine
    model: Union[loading.FastModel, "PeftModel"]
    state: Callable[[], Mapping[str, torch.Tensor]]
    features: Features
    material: Material
    pass_tokens: int


def tuned(job: Job, saved: Path | None, *, beside: Sequence[PictureGrid] = ()) -> Tuned:
    """The model in its place, its pictures' features made. saved: the checkpoint of a run that goes on; beside:
    pictures that are not the data's.

    Raises LorgnetteError where files are broken, and UsageError where an engine was asked for that cannot do it.
    """
    device = device_of(job.settings.device)
    dtype = dtype_of(job.settings.dtype, device)
    engine, why = engine_for(job.settings, config_of(job.material.checkpoint), on_gpu=device.type == "cuda")
    job.terminal.say(f"engine     {engine}{f' ({why})' if why else ''}")
    return (_fast if engine == "fast" else _reference)(job, saved, device, dtype, beside)


def batches_of(job: Job) -> Batches:
    """The training's."""
    chosen = job.settings
    return Batches.of(job.material.examples, chosen.train, chosen.seed, grouped=chosen.data.group_captions == "image")


def _fast(
    job: Job, saved: Path | None, device: torch.device, dtype: torch.dtype, beside: Sequence[PictureGrid]
) -> Tuned:
    chosen, checkpoint = job.settings, job.material.checkpoint
    features = loading.features_of(checkpoint, job.material.encoder.rule, device, dtype, _store(job, device, dtype))
    grouped = chosen.data.group_captions == "image"
    share = share_of(chosen, "fast")
    room = _room(job, device)
    coming = batches_of(job).coming(EXAMPLES_AHEAD, room.rows, share)
    pool = ThreadPoolExecutor(1, "warming optimizer")
    stepping = pool.submit(optimizer.warm, device, chosen.train)
    pool.shutdown(wait=False)
    opening = loading.Opening(
        checkpoint, chosen.lora, features, dtype, seed=chosen.seed, saved=saved, grouped=grouped, again=room.again,
        coming=coming,
    )  # fmt: skip
    features.begin([*job.material.grids, *beside])
    with job.stages("weights"):  # the tower's; the decoder's are read while features are made
        opening.tower()
    material = _prepared(job, features, beside)
    with job.stages("engine"):  # the device may still be busy with features
        stepping.result()  # nobody loads kernels while a pass is recorded
        engine = opening.engine()
        _finished(device)
    model = loading.FastModel(engine.decoder, engine.adapter, features)
    return Tuned(engine, model, engine.adapter.on_cpu, features, material, room.rows)


def _reference(
    job: Job, saved: Path | None, device: torch.device, dtype: torch.dtype, beside: Sequence[PictureGrid]
) -> Tuned:
    with job.stages("transformers"):
        from lorgnette.engine import hf_loading as weights
        from lorgnette.engine import peft_adapter as adapters
        from lorgnette.engine.peft_engine import ReferenceEngine
        from lorgnette.features.image_features import Tower

    chosen, checkpoint, rule = job.settings, job.material.checkpoint, job.material.encoder.rule
    with job.stages("weights"):
        base = weights.load(checkpoint, device, dtype)
    features = Features(Tower(base), rule, live=set(chosen.lora.towers) != {"language"})
    material = _prepared(job, features, beside)
    with job.stages("adapter"):
        _finished(device)
        if saved is None:
            model = adapters.attach(base, checkpoint.family, chosen.lora, chosen.seed)
            torch.manual_seed(chosen.seed)  # where dropout's random numbers start, on the CPU and on CUDA
        else:
            model = adapters.load(base, saved, trainable=True)
    engine, rows = ReferenceEngine(model, features), chosen.train.pass_tokens
    return Tuned(engine, model, lambda: adapters.copied(model), features, material, rows)


def _finished(device: torch.device) -> None:
    """Wait for what was launched, so that the steps' seconds are their own."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _room(job: Job, device: torch.device) -> Fit:
    """Passes and recomputed layers that the device's free memory holds, by the memory model's word: nothing is lowered
    where all fits. Where nothing would, the smallest, and an out-of-memory error may say so."""
    chosen, material = job.settings, job.material
    encoded = [*material.examples, *material.held_out]
    longest = max(len(e.tokens) for e in encoded)
    most = max(chosen.train.pass_tokens, longest)
    if device.type == "cpu":
        return Fit(most, 0, 0)
    per_step = chosen.train.batch_size * chosen.train.accumulation
    config, rows = config_of(material.checkpoint), min(most, per_step * longest)
    held_out = min(most, sum(len(e.tokens) for e in material.held_out))
    work = Work(
        "fast", TextShape.of(config), VisionShape.of(config), chosen.lora.targets, chosen.lora.rank,
        dropout=chosen.lora.dropout > 0, rows=rows, labels=min(rows, per_step * max(e.label_count for e in encoded)),
        number_bytes=4 if chosen.dtype == "float32" else 2, tower="while features are made", rooms=2,
        held_out_rows=held_out, held_out_labels=held_out, feature_rows=sum(grid.tokens for grid in material.grids),
    )  # fmt: skip
    free = usable(torch.cuda.mem_get_info(device)[0] / GIB)
    found = fit(work, longest, free) or Fit(longest, work.text.layers, free)
    if found.again or found.rows < rows:
        again = f", {found.again} of {work.text.layers} layers run twice" if found.again else ""
        job.terminal.say(f"memory     {free / GIB:.1f} GiB are free: passes of at most {found.rows} tokens{again}")
        return found
    return Fit(most, 0, found.peak)


def _prepared(job: Job, features: Features, beside: Sequence[PictureGrid]) -> Material:
    """The pictures' features made; the material without those that could not be decoded."""
    grids = [*job.material.grids, *beside]
    with job.stages("features"), job.terminal.bar("pictures", len(grids)) as advance:
        failed = features.prepare(grids, seen=advance)
        features.rest()
    job.stages.part("decoding", features.seconds_waited)
    return job.material.without(failed, job.settings.data.on_bad_row, job.terminal)


def _store(job: Job, device: torch.device, dtype: torch.dtype) -> Store | None:
    """Features on disk, where they can be kept."""
    try:
        return store_of(job.material.checkpoint, job.material.encoder.rule, device, dtype)
    except LorgnetteError as error:
        job.terminal.warn(f"features are not kept on disk: {error}")
        return None
