"""The engine of a training: ours where it computes what is asked for, else transformers' and PEFT's, saying why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch

from lorgnette.encode.pack import Share, passes
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.model import fast_model
from lorgnette.model.device import device_of, dtype_of
from lorgnette.model.features import Features
from lorgnette.model.store import Store, store_of
from lorgnette.run.job import Job
from lorgnette.run.material import Material
from lorgnette.train.loop import Engine
from lorgnette.types import PictureGrid

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Tuned:
    """A model in training: what the loop steps, what answers, the adapter's factors as they are when asked for, and
    the material without the rows whose pictures could not be decoded."""

    engine: Engine
    model: Union[fast_model.FastModel, "PeftModel"]
    state: Callable[[], Mapping[str, torch.Tensor]]
    features: Features
    material: Material


def tuned(job: Job, saved: Path | None, *, beside: Sequence[PictureGrid] = ()) -> Tuned:
    """The model in its place, its pictures' features made. saved: the checkpoint of a run that goes on; beside:
    pictures that are not the data's.

    Raises LorgnetteError where files are broken, and UsageError where an engine was asked for that cannot do it.
    """
    device = device_of(job.settings.device)
    dtype = dtype_of(job.settings.dtype, device)
    reason = _why_not_fast(job, device)
    job.terminal.say(f"engine     {'fast' if reason is None else f'reference ({reason})'}")
    return (_fast if reason is None else _reference)(job, saved, device, dtype, beside)


def _why_not_fast(job: Job, device: torch.device) -> str | None:
    """Why this run takes the reference engine; None where it takes ours."""
    asked = job.settings.engine
    if asked == "reference":
        return "as asked for"
    reason = fast_model.unsupported(job.material.checkpoint, job.settings.lora)
    if asked == "fast" and reason is not None:
        raise UsageError(f"the fast engine cannot do this: {reason}", where="engine=fast", remedy="use engine=auto")
    return "on a CPU" if asked == "auto" and device.type == "cpu" else reason


def _fast(
    job: Job, saved: Path | None, device: torch.device, dtype: torch.dtype, beside: Sequence[PictureGrid]
) -> Tuned:
    chosen, checkpoint = job.settings, job.material.checkpoint
    features = fast_model.features_of(checkpoint, job.material.encoder.rule, device, dtype, _store(job, device, dtype))
    grouped = chosen.data.group_captions == "image"
    per_step = chosen.train.batch_size * chosen.train.accumulation
    share: Share = "none" if chosen.lora.dropout and not grouped else "tree"
    opening = fast_model.Opening(
        checkpoint, chosen.lora, features, dtype, seed=chosen.seed, saved=saved, grouped=grouped, again=0,
        first=passes(job.material.examples[:per_step], chosen.train.pass_tokens, share=share)[0],
    )  # fmt: skip
    with job.stages("weights"):
        opening.decoder()
    material = _prepared(job, features, beside)
    with job.stages("engine"):
        engine = opening.engine()
    model = fast_model.FastModel(engine.decoder, engine.adapter, features)
    return Tuned(engine, model, engine.adapter.on_cpu, features, material)


def _reference(
    job: Job, saved: Path | None, device: torch.device, dtype: torch.dtype, beside: Sequence[PictureGrid]
) -> Tuned:
    with job.stages("transformers"):
        from lorgnette.model import adapter as adapters
        from lorgnette.model import load as weights
        from lorgnette.model.features import Tower
        from lorgnette.model.reference import ReferenceEngine

    chosen, checkpoint, rule = job.settings, job.material.checkpoint, job.material.encoder.rule
    with job.stages("weights"):
        base = weights.load(checkpoint, device, dtype)
    features = Features(Tower(base), rule, live=set(chosen.lora.towers) != {"language"})
    material = _prepared(job, features, beside)
    with job.stages("adapter"):
        if saved is None:
            model = adapters.attach(base, checkpoint.family, chosen.lora, chosen.seed)
            torch.manual_seed(chosen.seed)  # where dropout's random numbers start, on the CPU and on CUDA
        else:
            model = adapters.load(base, saved, trainable=True)
    return Tuned(ReferenceEngine(model, features), model, lambda: adapters.adapter_state(model), features, material)


def _prepared(job: Job, features: Features, beside: Sequence[PictureGrid]) -> Material:
    """The pictures' features made; the material without those that could not be decoded."""
    with job.stages("features"), job.terminal.bar("pictures", len(job.material.grids)) as advance:
        failed = features.prepare(job.material.grids, seen=advance)
        features.prepare(beside)
        features.rest()
        if features.device.type == "cuda":
            torch.cuda.synchronize()  # so that the stage's seconds are its own
    job.stages.part("decoding", features.seconds_waited)
    return job.material.without(failed, job.settings.data.on_bad_row, job.terminal)


def _store(job: Job, device: torch.device, dtype: torch.dtype) -> Store | None:
    """Features on disk, where they can be kept."""
    try:
        return store_of(job.material.checkpoint, job.material.encoder.rule, device, dtype)
    except LorgnetteError as error:
        job.terminal.warn(f"features are not kept on disk: {error}")
        return None
