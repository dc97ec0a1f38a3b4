"""`lorgnette.json`: what an adapter was trained with. It is kept in the adapter's folder and used whenever it runs.

Most bad answers of a fine-tuned model come from another resolution, prompt or template than in training, or from
another base model. Needs no torch.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from lorgnette.config import DataSettings, ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_json
from lorgnette.io.folder_kind import explain_folder
from lorgnette.io.parse import read_config
from lorgnette.lora.peft_config import read_peft_config
from lorgnette.models.base_checkpoint import BaseCheckpoint

METADATA_FILE = "lorgnette.json"
_HINT = "copy the adapter's folder again, or use the lorgnette that wrote it"


class AdapterOrigin(BaseModel):
    """The adapter that a training continued. name: its run or folder; step: of its run, None if unknown; sha256: of
    its weights file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    step: int | None
    sha256: str

    def __str__(self) -> str:
        return self.name if self.step is None else f"{self.name}, step {self.step}"


class AdapterMetadata(BaseModel):
    """model: name or folder of the base model; fingerprint: of its weights (BaseCheckpoint.fingerprint).

    None means unknown: the adapter was not trained by lorgnette. quantization: of the frozen weights in training, by
    the setting or the base model's own files; None: they were not quantized. step: optimizer steps of its run, those
    of `origin` not among them. origin: the adapter that its run continued; None for a new one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal[1] = 1
    family: str | None
    model: str
    revision: str | None
    fingerprint: str | None
    prompt: str
    chat_template: str | None
    processor: ProcessorSettings
    predict_image_size: Literal["train", "native"] = "train"
    """With this and the next setting the run answered its held-out examples."""
    predict_max_new_tokens: PositiveInt = 128
    predict_boxes: bool = False
    """Whether its answers have boxes, as far as the run's metrics say so."""
    quantization: Literal["nf4"] | None = None
    step: int | None = None
    origin: AdapterOrigin | None = None

    def write(self, adapter: Path) -> None:
        write_json(adapter / METADATA_FILE, self.model_dump(mode="json"))

    @classmethod
    def load(cls, adapter: Path) -> "AdapterMetadata":
        """Raises LorgnetteError if the folder is not an adapter of lorgnette's."""
        path = adapter / METADATA_FILE
        if not path.is_file():
            raise explain_folder(adapter, "adapter", lacks=METADATA_FILE)
        try:
            metadata = cls.model_validate(read_config(path, _HINT))
            metadata.prompt.encode()
            return metadata
        except UnicodeEncodeError:
            message = f"{METADATA_FILE} does not fit: prompt: it holds half of a character (a surrogate)"
            raise LorgnetteError(message, where=str(path), hint=_HINT) from None
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
            raise LorgnetteError(f"{METADATA_FILE} does not fit: {reason}", where=str(path), hint=_HINT) from None

    @classmethod
    def load_or_infer(cls, adapter: Path) -> "AdapterMetadata":
        """The adapter's metadata; for an adapter that only PEFT wrote, the tutorial's settings.

        Such a folder does not record its settings, so the caller should report the assumption.
        """
        if (adapter / METADATA_FILE).exists():
            return cls.load(adapter)
        base = read_peft_config(adapter).get("base_model_name_or_path")
        return cls(
            family=None, model=base or "unknown", revision=None, fingerprint=None, prompt=DataSettings().prompt,
            chat_template=None, processor=ProcessorSettings(),
        )  # fmt: skip

    @property
    def is_ours(self) -> bool:
        """Whether lorgnette trained the adapter, so that its base model can be checked."""
        return self.fingerprint is not None

    def check_base_model(self, checkpoint: BaseCheckpoint, chat_template: str) -> None:
        """Raises LorgnetteError if the adapter was trained on another base model. Checks nothing if that is unknown."""
        if not self.is_ours:
            return
        if checkpoint.family.model_type != self.family:
            message = f"base model is a {checkpoint.family.model_type}, the adapter's a {self.family}"
        elif checkpoint.fingerprint != self.fingerprint:
            message = "base model has other weights than the adapter was trained on"
        elif chat_template != self.chat_template:
            message = "base model has another chat template than the adapter was trained on"
        else:
            return
        hint = f"the adapter was trained on {self.model}: leave out model= (--model), or give that one"
        hint += f"; if you did, it or {METADATA_FILE} has changed since"
        raise LorgnetteError(message, where=str(checkpoint.folder), hint=hint)
