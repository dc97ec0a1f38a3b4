"""Loads a model for inference, in three stages: ModelSpec (headers only), LoadedModel (weights), ModelCache."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lorgnette.config import ProcessorSettings, Settings
from lorgnette.errors import LorgnetteError
from lorgnette.lora.metadata import METADATA_FILE, AdapterMetadata
from lorgnette.metrics.registry import expand_metric_names, uses_boxes
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunDir
from lorgnette.resolve import parse_model_name, portable_name, resolve_model
from lorgnette.types import Example, Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorgnette.engine.loading import FastModel
    from lorgnette.inference.generator import Generator
    from lorgnette.inference.sampling import SamplingParams, TokenCallback

DEFAULT_MODEL: str = Settings.model_fields["model"].default


def build_metadata(settings: Settings, checkpoint: BaseCheckpoint, processor: Processor) -> AdapterMetadata:
    """The metadata of an adapter trained with these settings."""
    name, hub = parse_model_name(settings.model)
    return AdapterMetadata(
        family=checkpoint.family.model_type,
        # Without the hub's prefix: PEFT and other readers know the plain name.
        model=portable_name(name) if hub == "auto" else name,
        revision=checkpoint.revision,
        fingerprint=checkpoint.fingerprint,
        quantization=checkpoint.quantization and checkpoint.quantization.kind,
        prompt=settings.data.prompt,
        chat_template=processor.chat_template.source,
        processor=settings.processor,
        predict_image_size=settings.predict.image_size,
        predict_max_new_tokens=settings.predict.max_new_tokens,
        predict_boxes=uses_boxes(expand_metric_names(settings.predict.metrics)),
    )


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory that can answer: its weights, with the adapter's if it has one, and its processor."""

    model: "PreTrainedModel | FastModel"
    processor: Processor

    @cached_property
    def _generator(self) -> "Generator":
        """Kept, with its KV caches and captured CUDA graphs."""
        from lorgnette.engine.loading import FastModel
        from lorgnette.inference.generator import Generator

        assert isinstance(self.model, FastModel)
        return Generator(self.model.decoder, self.model.features)

    def forget_images(self) -> None:
        """Forget what is known of images: their files may change."""
        from lorgnette.engine.loading import FastModel

        self.processor.forget_images()
        if isinstance(self.model, FastModel):
            self.model.features.forget_images()

    def generate_answers(
        self,
        examples: Sequence[Example],
        sampling: "SamplingParams",
        *,
        adapter: str | None,
        on_progress: Callable[[int], None] = lambda count: None,
        on_tokens: "TokenCallback | None" = None,
    ) -> Iterator[Prediction]:
        """Answer with the engine that holds the model. adapter=None disables the adapter."""
        from lorgnette.engine.loading import FastModel
        from lorgnette.inference import decode, hf_generate

        if isinstance(self.model, FastModel):
            generator, processor = self._generator, self.processor
            return decode.generate_answers(generator, processor, examples, sampling, adapter, on_progress, on_tokens)
        return hf_generate.generate_answers(
            self.model, self.processor, examples, sampling, adapter, on_progress, on_tokens
        )

    def release_memory(self) -> None:
        """Free what is kept from answer to answer: KV caches and their CUDA graphs."""
        if "_generator" in self.__dict__:
            self._generator.drop_caches()


@dataclass(frozen=True)
class ModelSpec:
    """A base model, perhaps with an adapter. Their headers are checked; no weights are read.

    metadata: the adapter's or the merged model's; None for a model that was not fine-tuned here. is_base_changed:
    whether loading the adapter changes the base model's own weights, so that base answers need a model without it.
    """

    base_model: str
    adapter: Path | None
    checkpoint: BaseCheckpoint
    processor: Processor
    metadata: AdapterMetadata | None
    is_base_changed: bool = False

    @property
    def title(self) -> str:
        """Who answers, in words."""
        base = "demo (the built-in model: drawn scenes only)" if self.base_model == "demo" else self.base_model
        base += " in NF4" if self.checkpoint.quantization else ""
        return f"{base}, with the adapter {self.adapter}" if self.adapter else base

    @classmethod
    def from_names(cls, model: str | None, adapter: Path | None, terminal: Terminal) -> "ModelSpec":
        """Resolve a model's name and an adapter's folder (or its run's folder) to files. Without both, the model is
        that of training without settings. Raises LorgnetteError if one is missing or the adapter was trained on
        another base model. `verification.judgement` judges the adapter."""
        adapter = adapter and resolve_adapter(adapter)
        adapter_metadata = AdapterMetadata.load_or_infer(adapter) if adapter else None
        base_model = model or (adapter_metadata.model if adapter_metadata else DEFAULT_MODEL)
        folder = resolve_model(base_model, terminal)
        if adapter_metadata and model is None and not folder.exists():
            hint = "name its folder: --model FOLDER"
            raise LorgnetteError("the adapter's base model is missing", where=base_model, hint=hint)
        checkpoint = BaseCheckpoint.from_folder(folder)
        # A merged model has the metadata of its adapter.
        is_merged = (folder / METADATA_FILE).is_file()
        metadata = adapter_metadata or (AdapterMetadata.load(folder) if is_merged else None)
        checkpoint = checkpoint.quantize(metadata.quantization if metadata else None)
        processor = Processor.from_folder(checkpoint.folder, metadata.processor if metadata else ProcessorSettings())
        if adapter_metadata:
            adapter_metadata.check_base_model(checkpoint, processor.chat_template.source)
        return cls(base_model, adapter, checkpoint, processor, metadata)

    def load(self, device_name: str) -> LoadedModel:
        """Read the weights. On CUDA the fast engine is used if it supports this model and adapter."""
        from lorgnette.device import select_device, select_dtype
        from lorgnette.engine import loading
        from lorgnette.lora.peft_files import SavedAdapter

        device = select_device(device_name)
        dtype = select_dtype("auto", device)
        saved = SavedAdapter.load(self.adapter) if self.adapter else None
        with explain_out_of_memory("free some memory, or use --device cpu"):
            if device.type == "cuda" and loading.explain_unsupported_inference(self.checkpoint, saved) is None:
                features = loading.build_features(self.checkpoint, self.processor.image_processor, device, dtype)
                return LoadedModel(loading.load_fast_model(self.checkpoint, saved, features, dtype), self.processor)
            from lorgnette.engine import peft_engine

            base = peft_engine.load_base_model(self.checkpoint, device, dtype)
            return LoadedModel(peft_engine.load_adapter(base, self.adapter) if self.adapter else base, self.processor)


class ModelCache:
    """Keeps the model that was used last, so that the next caller with the same spec need not load it."""

    def __init__(self, device_name: str) -> None:
        self._device_name = device_name
        self._entry: tuple[ModelSpec, LoadedModel] | None = None

    def get(self, spec: ModelSpec) -> LoadedModel:
        if self._entry is None or self._entry[0] != spec:
            self._entry = None  # frees the last model's memory before the next one is loaded
            self._entry = spec, spec.load(self._device_name)
        return self._entry[1]


def resolve_adapter(path: Path) -> Path:
    """The adapter's folder: of a run's folder its `adapter`, else `path` itself."""
    run = RunDir(path)
    return run.adapter if run.config.is_file() and run.adapter.is_dir() else path


def release_unused_models() -> None:
    """Free the memory of models that nobody uses any more, on the GPU too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def explain_out_of_memory(hint: str) -> Iterator[None]:
    """Turn an out-of-memory error into a LorgnetteError with a hint. Other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"out of memory: {describe_out_of_memory(error)}"
        raise LorgnetteError(message, where="memory", hint=hint) from error


def describe_out_of_memory(error: BaseException) -> str:
    """What torch says about the memory that it did not get, in one line."""
    first_line = (str(error).strip() or "no details").splitlines()[0]
    return first_line.partition(". GPU ")[0].rpartition("DefaultCPUAllocator: ")[2]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that a device's memory is short, or the host's."""
    import torch

    # torch has no error type of its own for the memory of a CPU and of MPS.
    is_short = any(words in str(error) for words in ("can't allocate memory", "MPS backend out of memory"))
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and is_short)
