"""A model as a verb asks for it: `demo` or a folder; its encoder; its weights, with an adapter where there is one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorgnette.config import Encode, Settings
from lorgnette.errors import LorgnetteError
from lorgnette.lora.metadata import FILE, Contract
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.processing.processor import Encoder
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunFolder
from lorgnette.resolve import hub_of, lasting, model_folder
from lorgnette.types import Example, Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorgnette.engine.loading import FastModel
    from lorgnette.inference.hf_generate import Sampling


def contract_of(settings: Settings, checkpoint: Checkpoint, encoder: Encoder) -> Contract:
    """What an adapter trained under these settings must be used with."""
    name, hub = hub_of(settings.model)
    return Contract(
        family=checkpoint.family.model_type,
        model=lasting(name) if hub == "auto" else name,  # without the hub: so others know it who read this adapter
        revision=checkpoint.revision,
        fingerprint=checkpoint.fingerprint,
        prompt=settings.data.prompt,
        chat_template=encoder.template.source,
        encode=settings.encode,
    )


@dataclass(frozen=True)
class Opened:
    """A model ready to answer: its weights (with the adapter where one was asked for) and the adapter's encoder."""

    model: "PreTrainedModel | FastModel"
    encoder: Encoder

    def answers(
        self,
        examples: Sequence[Example],
        sampling: "Sampling",
        *,
        adapter: str | None,
        seen: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Prediction]:
        """Answers by the engine that holds the model; without its adapter where `adapter` is None."""
        from lorgnette.engine.loading import FastModel
        from lorgnette.inference import decode, hf_generate

        if isinstance(self.model, FastModel):
            return decode.answers(self.model, self.encoder, examples, sampling, adapter=adapter, seen=seen)
        return hf_generate.answers(self.model, self.encoder, examples, sampling, adapter=adapter, seen=seen)


@dataclass(frozen=True)
class Asked:
    """A model and perhaps an adapter as a verb asks for them, looked over; no weights are read yet.

    contract: the adapter's, or a merged model's own; None for an untuned model.
    """

    base: str
    adapter: Path | None
    checkpoint: Checkpoint
    encoder: Encoder
    contract: Contract | None

    @classmethod
    def of(cls, model: str | None, adapter: Path | None, terminal: Terminal) -> "Asked":
        """`adapter` may be the run that made it. Raises LorgnetteError where one is not there, or base and adapter do
        not fit."""
        adapter = adapter and adapter_of(adapter)
        contract = Contract.of(adapter) if adapter else None
        base = model or (contract.model if contract else "demo")
        folder = model_folder(base, terminal)
        if contract and model is None and not folder.exists():
            raise LorgnetteError(
                "the adapter's base model is gone", where=base, remedy="say where it is now: --model FOLDER"
            )
        checkpoint = Checkpoint.at(folder)
        own = Contract.read(folder) if (folder / FILE).is_file() else None  # a merged model brings its adapter's
        trained = contract or own
        encoder = Encoder.of_folder(checkpoint.folder, trained.encode if trained else Encode())
        if contract:
            contract.demand(checkpoint, encoder.template.source)
        return cls(base, adapter, checkpoint, encoder, trained)

    def opened(self, device: str) -> Opened:
        """Read the weights: on CUDA by our own engine where it knows this model and adapter."""
        from lorgnette.device import device_of, dtype_of
        from lorgnette.engine import loading
        from lorgnette.lora.peft_files import SavedAdapter

        place = device_of(device)
        dtype = dtype_of("auto", place)
        saved = SavedAdapter.read(self.adapter) if self.adapter else None
        with enough_memory("free some, or use --device cpu"):
            if place.type == "cuda" and loading.unsupported_answers(self.checkpoint, saved) is None:
                features = loading.features_of(self.checkpoint, self.encoder.rule, place, dtype)
                return Opened(loading.opened(self.checkpoint, saved, features, dtype), self.encoder)
            from lorgnette.engine import hf_loading as weights
            from lorgnette.engine import peft_adapter as adapters

            loaded = weights.load(self.checkpoint, place, dtype)
            return Opened(adapters.load(loaded, self.adapter) if self.adapter else loaded, self.encoder)


class Weights:
    """The model that was asked last, on a device: whoever comes next with the same one finds it open."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._open: tuple[Asked, Opened] | None = None

    def of(self, asked: Asked) -> Opened:
        if self._open is None or self._open[0] != asked:
            self._open = None  # makes room before the next is read
            self._open = asked, asked.opened(self._device)
        return self._open[1]


def adapter_of(named: Path) -> Path:
    """The adapter of a run, where a run's folder is named; else what is named."""
    run = RunFolder(named)
    return run.adapter if run.config.is_file() and run.adapter.is_dir() else named


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Memory that runs out is a setting too large, not a defect."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LorgnetteError(_brief(error), where="memory", remedy=remedy) from error
    except RuntimeError as error:  # torch has no type of its own for a CPU's memory
        if "can't allocate memory" not in str(error):
            raise
        raise LorgnetteError(_brief(error), where="memory", remedy=remedy) from error


def _brief(error: BaseException) -> str:
    said = str(error).strip() or "no more is to be had"
    return f"memory is full: {said.splitlines()[0].partition('. GPU ')[0].rpartition('DefaultCPUAllocator: ')[2]}"
