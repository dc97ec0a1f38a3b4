"""A model as our own engine holds it: decoder, adapter and image features, without transformers and PEFT."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lorgnette.config import LoraSettings
from lorgnette.engine import warmup
from lorgnette.engine.build_decoder import empty_adapter_shape, load_decoder
from lorgnette.engine.fast import FastEngine
from lorgnette.features.disk_cache import FeatureDiskCache
from lorgnette.features.image_features import Features, LazyTower
from lorgnette.inference.generator import Generator
from lorgnette.lora.flat_params import AdapterShape, FlatLoraParams
from lorgnette.lora.peft_files import SavedAdapter, compute_scale
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig, load_hf_config
from lorgnette.models.qwen2_vl.config import find_unsupported_feature as unknown
from lorgnette.models.qwen2_vl.text_decoder import Decoder
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import PackedBatch


@dataclass(frozen=True)
class FastModel:
    """adapter: None for an untuned model."""

    decoder: Decoder
    adapter: FlatLoraParams | None
    features: Features

    @cached_property
    def speaker(self) -> Generator:
        """Kept with what it has recorded."""
        return Generator(self.decoder, self.features)


def build_features(
    checkpoint: BaseCheckpoint,
    rule: ImageProcessor,
    device: torch.device,
    dtype: torch.dtype,
    disk_cache: FeatureDiskCache | None = None,
) -> Features:
    """Features of a frozen tower, which is read when the first picture needs it."""
    tower = LazyTower(device, dtype, lambda: VisionTower.from_checkpoint(checkpoint, device, dtype))
    return Features(tower, rule, is_live=False, disk_cache=disk_cache)


def load_fast_model(
    checkpoint: BaseCheckpoint, saved: SavedAdapter | None, features: Features, dtype: torch.dtype
) -> FastModel:
    """The model with a saved adapter, to answer. Raises LorgnetteError where the files do not fit."""
    text = TextConfig.from_hf_config(load_hf_config(checkpoint))
    device = features.device
    if saved is None:
        return FastModel(load_decoder(checkpoint, empty_adapter_shape(text), device, dtype), None, features)
    shape = saved.build_shape(text)
    decoder, adapter = load_decoder(checkpoint, shape, device, dtype), FlatLoraParams(shape, device)
    adapter.load_state_dict(saved.state)
    adapter.attach(decoder)
    return FastModel(decoder, adapter, features)


class PendingEngine:
    """A model to be trained, on its way while its pictures are made into features: weights are read (the tower's, if it
    is needed, before the decoder's), kernels are warmed and the adapter is drawn on threads."""

    def __init__(
        self,
        checkpoint: BaseCheckpoint,
        lora: LoraSettings,
        features: Features,
        dtype: torch.dtype,
        *,
        seed: int,
        resume_from: Path | None,
        group_by_image: bool,
        recompute_layers: int,
        first_batches: Sequence[PackedBatch],
    ) -> None:
        """saved: the checkpoint folder of a run that is resumed; coming: batches that the training begins with."""
        config, device = load_hf_config(checkpoint), features.device
        shape = AdapterShape(TextConfig.from_hf_config(config), lora.target_modules, lora.rank, compute_scale(lora))
        reading, drawing, tower, decoder = (
            ThreadPoolExecutor(1, name) for name in ("reading", "drawing", "warming tower", "warming decoder")
        )
        self._warmups: list[Future[None]] = []
        self._lazy_tower = features.lazy_tower if device.type == "cuda" and first_batches[0].grids else None
        if self._lazy_tower is not None:
            self._warmups.append(
                tower.submit(
                    warmup.warm_up_tower, VisionConfig.from_hf_config(config), first_batches[0].grids, device, dtype
                )
            )
        if device.type == "cuda":
            self._warmups.append(
                decoder.submit(
                    warmup.warm_up_decoder,
                    shape,
                    first_batches,
                    features,
                    dtype,
                    dropout=lora.dropout,
                    group_by_image=group_by_image,
                )
            )
        if self._lazy_tower is not None:
            self._lazy_tower.start_loading(reading, self._warmups)
        self._decoder = reading.submit(load_decoder, checkpoint, shape, device, dtype)
        self._adapter = FlatLoraParams(shape, device)
        there = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        self._adapter_ready = drawing.submit(_init_adapter, self._adapter, seed, resume_from, there)
        for pool in (reading, drawing, tower, decoder):
            pool.shutdown(wait=False)
        self._build_engine: Callable[[Decoder], FastEngine] = lambda decoder: FastEngine(
            decoder,
            self._adapter,
            features,
            dropout=lora.dropout,
            seed=seed,
            group_by_image=group_by_image,
            recompute_layers=recompute_layers,
        )
        self._first_batches = first_batches

    def wait_for_tower(self) -> None:
        """Wait for the vision tower, where it is on its way. Raises LorgnetteError where the files are broken or do not
        fit."""
        if self._lazy_tower is not None:
            self._lazy_tower.wait()

    def wait_for_engine(self) -> FastEngine:
        """Wait for all of it, and rehearse. Raises LorgnetteError as `tower` does.

        What is rehearsed may read an adapter that is half drawn: nothing of it is kept, and `updated` follows.
        """
        for warmed in self._warmups:
            warmed.result()
        engine = self._build_engine(self._decoder.result())
        engine.capture_ahead(self._first_batches)
        self._adapter_ready.result()
        engine.sync_weights()
        return engine


def explain_unsupported_inference(checkpoint: BaseCheckpoint, saved: SavedAdapter | None) -> str | None:
    """Why this model cannot answer by our own engine, or None where it can."""
    config = load_hf_config(checkpoint)
    reason = unknown(config)
    if reason is None and saved is not None:
        reason = saved.explain_unsupported(TextConfig.from_hf_config(config), VisionConfig.from_hf_config(config))
    return reason


def _init_adapter(
    adapter: FlatLoraParams, seed: int, resume_from: Path | None, zeroed: torch.cuda.Event | None
) -> None:
    """Give the adapter its first values, or those that were saved. there: on CUDA, once its memory is zeroed."""
    beside = torch.cuda.Stream(adapter.values.device) if zeroed else None  # type: ignore[no-untyped-call]
    with torch.cuda.stream(beside):  # not behind the tower's pictures
        if beside is not None and zeroed is not None:
            beside.wait_event(zeroed)
        if resume_from is None:
            adapter.copy_from(FlatLoraParams.init_values(adapter.shape, seed))
        else:
            read = SavedAdapter.load(resume_from)
            read.build_shape(adapter.shape.text)
            adapter.load_state_dict(read.state)
        if beside is not None:
            beside.synchronize()
