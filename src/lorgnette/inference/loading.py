"""A model as a verb asks for it: `demo` or a folder; its encoder; its weights, with an adapter where there is one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorgnette.config import ProcessorSettings, Settings
from lorgnette.errors import LorgnetteError
from lorgnette.lora.metadata import METADATA_FILE, AdapterMetadata
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunDir
from lorgnette.resolve import parse_model_name, portable_name, resolve_model
from lorgnette.types import Example, Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorgnette.engine.loading import FastModel
    from lorgnette.inference.hf_generate import SamplingParams


def build_metadata(settings: Settings, checkpoint: BaseCheckpoint, processor: Processor) -> AdapterMetadata:
    """What an adapter trained under these settings must be used with."""
    name, hub = parse_model_name(settings.model)
    return AdapterMetadata(
        family=checkpoint.family.model_type,
        model=portable_name(name)
        if hub == "auto"
        else name,  # without the hub: so others know it who read this adapter
        revision=checkpoint.revision,
        fingerprint=checkpoint.fingerprint,
        prompt=settings.data.prompt,
        chat_template=processor.chat_template.source,
        processor=settings.processor,
    )


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer: its weights (with the adapter where one was asked for) and the adapter's encoder."""

    model: "PreTrainedModel | FastModel"
    processor: Processor

    def generate_answers(
        self,
        examples: Sequence[Example],
        sampling: "SamplingParams",
        *,
        adapter: str | None,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Prediction]:
        """Answers by the engine that holds the model; without its adapter where `adapter` is None."""
        from lorgnette.engine.loading import FastModel
        from lorgnette.inference import decode, hf_generate

        if isinstance(self.model, FastModel):
            return decode.generate_answers(
                self.model, self.processor, examples, sampling, adapter=adapter, on_progress=on_progress
            )
        return hf_generate.generate_answers(
            self.model, self.processor, examples, sampling, adapter=adapter, on_progress=on_progress
        )


@dataclass(frozen=True)
class ModelSpec:
    """A model and perhaps an adapter as a verb asks for them, looked over; no weights are read yet.

    contract: the adapter's, or a merged model's own; None for an untuned model.
    """

    base_model: str
    adapter: Path | None
    checkpoint: BaseCheckpoint
    processor: Processor
    metadata: AdapterMetadata | None

    @classmethod
    def from_names(cls, model: str | None, adapter: Path | None, terminal: Terminal) -> "ModelSpec":
        """`adapter` may be the run that made it. Raises LorgnetteError where one is not there, or base and adapter do
        not fit."""
        adapter = adapter and resolve_adapter(adapter)
        contract = AdapterMetadata.load_or_infer(adapter) if adapter else None
        base = model or (contract.model if contract else "demo")
        folder = resolve_model(base, terminal)
        if contract and model is None and not folder.exists():
            raise LorgnetteError(
                "the adapter's base model is gone", where=base, hint="say where it is now: --model FOLDER"
            )
        checkpoint = BaseCheckpoint.from_folder(folder)
        own = (
            AdapterMetadata.load(folder) if (folder / METADATA_FILE).is_file() else None
        )  # a merged model brings its adapter's
        trained = contract or own
        encoder = Processor.from_folder(checkpoint.folder, trained.processor if trained else ProcessorSettings())
        if contract:
            contract.check_base_model(checkpoint, encoder.chat_template.source)
        return cls(base, adapter, checkpoint, encoder, trained)

    def load(self, device: str) -> LoadedModel:
        """Read the weights: on CUDA by our own engine where it knows this model and adapter."""
        from lorgnette.device import select_device, select_dtype
        from lorgnette.engine import loading
        from lorgnette.lora.peft_files import SavedAdapter

        place = select_device(device)
        dtype = select_dtype("auto", place)
        saved = SavedAdapter.load(self.adapter) if self.adapter else None
        with explain_out_of_memory("free some, or use --device cpu"):
            if place.type == "cuda" and loading.explain_unsupported_inference(self.checkpoint, saved) is None:
                features = loading.build_features(self.checkpoint, self.processor.image_processor, place, dtype)
                return LoadedModel(loading.load_fast_model(self.checkpoint, saved, features, dtype), self.processor)
            from lorgnette.engine import hf_loading as weights
            from lorgnette.engine import peft_adapter as adapters

            loaded = weights.load_base_model(self.checkpoint, place, dtype)
            return LoadedModel(adapters.load_adapter(loaded, self.adapter) if self.adapter else loaded, self.processor)


class ModelCache:
    """The model that was asked last, on a device: whoever comes next with the same one finds it open."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._open: tuple[ModelSpec, LoadedModel] | None = None

    def get(self, spec: ModelSpec) -> LoadedModel:
        if self._open is None or self._open[0] != spec:
            self._open = None  # makes room before the next is read
            self._open = spec, spec.load(self._device)
        return self._open[1]


def resolve_adapter(path: Path) -> Path:
    """The adapter of a run, where a run's folder is named; else what is named."""
    run = RunDir(path)
    return run.adapter if run.config.is_file() and run.adapter.is_dir() else path


@contextmanager
def explain_out_of_memory(hint: str) -> Iterator[None]:
    """Memory that runs out is a setting too large, not a defect."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LorgnetteError(_summarize_error(error), where="memory", hint=hint) from error
    except RuntimeError as error:  # torch has no type of its own for a CPU's memory
        if "can't allocate memory" not in str(error):
            raise
        raise LorgnetteError(_summarize_error(error), where="memory", hint=hint) from error


def _summarize_error(error: BaseException) -> str:
    said = str(error).strip() or "no more is to be had"
    return f"memory is full: {said.splitlines()[0].partition('. GPU ')[0].rpartition('DefaultCPUAllocator: ')[2]}"
