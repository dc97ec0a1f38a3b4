"""A model as a verb asks for it: `demo` or a folder; its encoder; its weights, with an adapter where there is one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorgnette.config import Encode, Settings
from lorgnette.encode.encoder import Encoder
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.contract import Contract

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUILT_IN = Path(__file__).parents[1] / "demo" / "model"


def checkpoint_of(model: str) -> Checkpoint:
    """`demo` is the built-in model; anything else is a folder."""
    return Checkpoint.at(BUILT_IN if model == "demo" else Path(model))


def contract_of(settings: Settings, checkpoint: Checkpoint, encoder: Encoder) -> Contract:
    """What an adapter trained under these settings must be used with."""
    return Contract(
        family=checkpoint.family.model_type,
        model=settings.model if settings.model == "demo" else str(Path(settings.model).resolve()),
        revision=checkpoint.revision,
        fingerprint=checkpoint.fingerprint,
        prompt=settings.data.prompt,
        chat_template=encoder.template.source,
        encode=settings.encode,
    )


@dataclass(frozen=True)
class Opened:
    """A model ready to answer: its weights (with the adapter where one was asked for) and the adapter's encoder.

    contract: the adapter's; None for an untuned model.
    """

    model: "PreTrainedModel"
    encoder: Encoder
    contract: Contract | None
    base: str

    @classmethod
    def of(cls, model: str | None, adapter: Path | None, device: str, encode: Encode | None = None) -> "Opened":
        """Everything is looked at before weights are read. Raises LorgnetteError where base and adapter do not fit."""
        contract = Contract.read(adapter) if adapter else None
        base = model or (contract.model if contract else "demo")
        checkpoint = checkpoint_of(base)
        encoder = Encoder.of_folder(checkpoint.folder, contract.encode if contract else encode or Encode())
        if contract:
            contract.demand(checkpoint, encoder.template.source)
        from lorgnette.model import adapter as adapters
        from lorgnette.model import load as weights

        place = weights.device_of(device)
        loaded = weights.load(checkpoint, place, weights.dtype_of("auto", place))
        if adapter:
            loaded = adapters.load(loaded, adapter)
        return cls(loaded, encoder, contract, base)
