"""Opens the fast engine for a training: loading, kernel warm-up and adapter initialization on threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from lorgnette.config import LoraSettings
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import load_decoder
from lorgnette.engine.warmup import warm_up_decoder, warm_up_tower
from lorgnette.features.image_features import Features, LazyTower
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.text_decoder import Decoder
from lorgnette.models.registry import parse_configs
from lorgnette.types import PackedBatch


@dataclass(frozen=True)
class PendingEngine:
    """An engine whose parts are still loading on threads."""

    lazy_tower: LazyTower | None
    warmups: Sequence[Future[None]]
    decoder: Future[Decoder]
    adapter_init: Future[None]
    build_engine: Callable[[Decoder], FastEngine]
    first_batches: Sequence[PackedBatch]

    def wait_for_tower(self) -> None:
        """Wait for the vision tower, if it is loading. Raises LorgnetteError if its files are broken or do not fit."""
        if self.lazy_tower is not None:
            self.lazy_tower.wait()

    def wait_for_engine(self) -> FastEngine:
        """Wait for everything and capture the first graph. Raises LorgnetteError if files are broken or do not fit."""
        for warmup in self.warmups:
            warmup.result()
        engine = self.build_engine(self.decoder.result())
        # The replay inside may read a half-initialized adapter: nothing of it is kept, and the copy below follows.
        engine.capture_ahead(self.first_batches)
        self.adapter_init.result()
        engine.sync_weights()
        return engine


def open_for_training(
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
) -> PendingEngine:
    """Start loading a model that will be trained, and return at once.

    The caller computes image features meanwhile. Who waits for whom (│ waits for what is left of it):

        load         tower weights ──────────┬─ decoder weights ─────────────────┐
        warm tower   tower kernels ──────────┤                                   │
        warm decoder decoder kernels ────────┤                                   │
        init adapter (memory zeroed) values ─│───────────────────────────────────│─────────┐
        caller       open_for_training ······│ wait_for_tower, features ·········│ capture │ sync_weights

    The tower and the two warm-ups only run on CUDA, the tower only if no image's features are on disk. The tower's
    weights are read before the decoder's, because the features need them first.

    resume_from: a checkpoint folder with the adapter. first_batches: micro-batches of the first steps.
    """
    (text_config, vision_config), device = parse_configs(checkpoint.load_hf_config()), features.device
    shape = AdapterShape.from_settings(text_config, lora)
    load, init, warm_tower, warm_decoder = (
        ThreadPoolExecutor(1, name) for name in ("load", "init adapter", "warm tower", "warm decoder")
    )
    is_cuda, grids = device.type == "cuda", first_batches[0].grids
    lazy_tower = features.lazy_tower if is_cuda and grids else None

    # Kernels, while the weights are read.
    warmups: list[Future[None]] = []
    if lazy_tower is not None:
        warmups.append(warm_tower.submit(warm_up_tower, vision_config, grids, device, dtype))
    if is_cuda:
        warmups.append(
            warm_decoder.submit(
                warm_up_decoder, shape, first_batches, features, dtype, dropout=lora.dropout,
                group_by_image=group_by_image,
            )
        )  # fmt: skip

    # Weights, on one thread: the tower's, then the decoder's.
    if lazy_tower is not None:
        lazy_tower.start_loading(load, warmups)
    decoder = load.submit(load_decoder, checkpoint, shape, device, dtype)

    # The adapter's values, on a stream of their own, once this stream has zeroed its memory.
    adapter = FlatLoraParams(shape, device)
    zeroed = torch.cuda.current_stream(device).record_event() if is_cuda else None
    adapter_init = init.submit(_init_adapter, adapter, seed, resume_from, zeroed)

    for pool in (load, init, warm_tower, warm_decoder):
        pool.shutdown(wait=False)

    def build_engine(decoder: Decoder) -> FastEngine:
        return FastEngine(
            decoder, adapter, features, dropout=lora.dropout, seed=seed, group_by_image=group_by_image,
            recompute_layers=recompute_layers,
        )  # fmt: skip

    return PendingEngine(lazy_tower, warmups, decoder, adapter_init, build_engine, first_batches)


def _init_adapter(
    adapter: FlatLoraParams, seed: int, resume_from: Path | None, zeroed: torch.cuda.Event | None
) -> None:
    """Write the adapter's first values, or those of a checkpoint. zeroed: on CUDA, the event after its memory is 0."""
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
