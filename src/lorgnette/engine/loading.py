"""A model as our own engine holds it: decoder, adapter and image features, without transformers and PEFT."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lorgnette.config import Lora
from lorgnette.engine import warmup
from lorgnette.engine.build_decoder import bare, decoder_of
from lorgnette.engine.fast import FastEngine
from lorgnette.features.disk_cache import Store
from lorgnette.features.image_features import Features, Late
from lorgnette.inference.generator import Speaker
from lorgnette.lora.flat_params import AdapterShape, FlatAdapter
from lorgnette.lora.peft_files import SavedAdapter, scale_of
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.models.qwen2_vl.config import TextShape, VisionShape, config_of
from lorgnette.models.qwen2_vl.config import unsupported as unknown
from lorgnette.models.qwen2_vl.text_decoder import Decoder
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.processing.image_processor import PictureRule
from lorgnette.types import PackedBatch


@dataclass(frozen=True)
class FastModel:
    """adapter: None for an untuned model."""

    decoder: Decoder
    adapter: FlatAdapter | None
    features: Features

    @cached_property
    def speaker(self) -> Speaker:
        """Kept with what it has recorded."""
        return Speaker(self.decoder, self.features)


def features_of(
    checkpoint: Checkpoint, rule: PictureRule, device: torch.device, dtype: torch.dtype, store: Store | None = None
) -> Features:
    """Features of a frozen tower, which is read when the first picture needs it."""
    tower = Late(device, dtype, lambda: VisionTower.read(checkpoint, device, dtype))
    return Features(tower, rule, live=False, store=store)


def opened(checkpoint: Checkpoint, saved: SavedAdapter | None, features: Features, dtype: torch.dtype) -> FastModel:
    """The model with a saved adapter, to answer. Raises LorgnetteError where the files do not fit."""
    text = TextShape.of(config_of(checkpoint))
    device = features.device
    if saved is None:
        return FastModel(decoder_of(checkpoint, bare(text), device, dtype), None, features)
    shape = saved.shape(text)
    decoder, adapter = decoder_of(checkpoint, shape, device, dtype), FlatAdapter(shape, device)
    adapter.load(saved.state)
    adapter.attach(decoder)
    return FastModel(decoder, adapter, features)


class Opening:
    """A model to be trained, on its way while its pictures are made into features: weights are read (the tower's, if it
    is needed, before the decoder's), kernels are warmed and the adapter is drawn on threads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        lora: Lora,
        features: Features,
        dtype: torch.dtype,
        *,
        seed: int,
        saved: Path | None,
        grouped: bool,
        again: int,
        coming: Sequence[PackedBatch],
    ) -> None:
        """saved: the checkpoint folder of a run that is resumed; coming: batches that the training begins with."""
        config, device = config_of(checkpoint), features.device
        shape = AdapterShape(TextShape.of(config), lora.targets, lora.rank, scale_of(lora))
        reading, drawing, tower, decoder = (
            ThreadPoolExecutor(1, name) for name in ("reading", "drawing", "warming tower", "warming decoder")
        )
        self._warm: list[Future[None]] = []
        self._late = features.late if device.type == "cuda" and coming[0].grids else None
        if self._late is not None:
            self._warm.append(tower.submit(warmup.tower, VisionShape.of(config), coming[0].grids, device, dtype))
        if device.type == "cuda":
            self._warm.append(
                decoder.submit(warmup.decoder, shape, coming, features, dtype, dropout=lora.dropout, grouped=grouped)
            )
        if self._late is not None:
            self._late.begin(reading, self._warm)
        self._decoder = reading.submit(decoder_of, checkpoint, shape, device, dtype)
        self._adapter = FlatAdapter(shape, device)
        there = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        self._drawn = drawing.submit(_draw, self._adapter, seed, saved, there)
        for pool in (reading, drawing, tower, decoder):
            pool.shutdown(wait=False)
        self._made: Callable[[Decoder], FastEngine] = lambda decoder: FastEngine(
            decoder, self._adapter, features, dropout=lora.dropout, seed=seed, grouped=grouped, again=again
        )
        self._coming = coming

    def tower(self) -> None:
        """Wait for the vision tower, where it is on its way. Raises LorgnetteError where the files are broken or do not
        fit."""
        if self._late is not None:
            self._late.wait()

    def engine(self) -> FastEngine:
        """Wait for all of it, and rehearse. Raises LorgnetteError as `tower` does.

        What is rehearsed may read an adapter that is half drawn: nothing of it is kept, and `updated` follows.
        """
        for warmed in self._warm:
            warmed.result()
        engine = self._made(self._decoder.result())
        engine.rehearse(self._coming)
        self._drawn.result()
        engine.updated()
        return engine


def unsupported_answers(checkpoint: Checkpoint, saved: SavedAdapter | None) -> str | None:
    """Why this model cannot answer by our own engine, or None where it can."""
    config = config_of(checkpoint)
    reason = unknown(config)
    if reason is None and saved is not None:
        reason = saved.unsupported(TextShape.of(config), VisionShape.of(config))
    return reason


def _draw(adapter: FlatAdapter, seed: int, saved: Path | None, there: torch.cuda.Event | None) -> None:
    """Give the adapter its first values, or those that were saved. there: on CUDA, once its memory is zeroed."""
    beside = torch.cuda.Stream(adapter.values.device) if there else None  # type: ignore[no-untyped-call]
    with torch.cuda.stream(beside):  # not behind the tower's pictures
        if beside is not None and there is not None:
            beside.wait_event(there)
        if saved is None:
            adapter.take(FlatAdapter.drawn(adapter.shape, seed))
        else:
            read = SavedAdapter.read(saved)
            read.shape(adapter.shape.text)
            adapter.load(read.state)
        if beside is not None:
            beside.synchronize()
