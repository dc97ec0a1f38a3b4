"""`lorgnette.json`: what an adapter was trained with, kept in its folder and honoured ever after.

The commonest "my tuned model is bad" is another resolution, prompt or template at prediction than in training; the
second commonest is another base model. Needs no torch.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lorgnette.config import DataSettings, ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_json
from lorgnette.models.base_checkpoint import BaseCheckpoint

METADATA_FILE = "lorgnette.json"
PEFT_FILE = "adapter_config.json"
_HINT = "copy the adapter's folder again, or use the lorgnette that wrote it"


class AdapterMetadata(BaseModel):
    """model: the name or folder it was trained from; fingerprint: of that model's weights (Checkpoint.fingerprint).

    None stands where it is not known, for an adapter that was not trained here.
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

    def write(self, adapter: Path) -> None:
        write_json(adapter / METADATA_FILE, self.model_dump(mode="json"))

    @classmethod
    def load(cls, adapter: Path) -> "AdapterMetadata":
        """Raises LorgnetteError where the folder is no adapter of ours."""
        path = adapter / METADATA_FILE
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise LorgnetteError(
                f"no adapter here: {METADATA_FILE} is missing", where=str(adapter), hint="name a run's `adapter` folder"
            ) from None
        except ValidationError as error:
            fault = error.errors()[0]
            what = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ")
            raise LorgnetteError(f"{METADATA_FILE} does not fit: {what}", where=str(path), hint=_HINT) from None
        except ValueError as error:
            raise LorgnetteError(f"{METADATA_FILE} cannot be read: {error}", where=str(path), hint=_HINT) from None

    @classmethod
    def load_or_infer(cls, adapter: Path) -> "AdapterMetadata":
        """The adapter's own, or, for one that PEFT alone has written, what the tutorial trains with: nothing in such a
        folder says otherwise, so say it to whoever asks."""
        foreign = adapter / PEFT_FILE
        if (adapter / METADATA_FILE).exists() or not foreign.is_file():
            return cls.load(adapter)
        try:
            base = json.loads(foreign.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (ValueError, AttributeError) as error:
            raise LorgnetteError(f"{PEFT_FILE} cannot be read: {error}", where=str(foreign), hint=_HINT) from None
        return cls(
            family=None, model=base or "unknown", revision=None, fingerprint=None, prompt=DataSettings().prompt,
            chat_template=None, processor=ProcessorSettings(),
        )  # fmt: skip

    @property
    def is_ours(self) -> bool:
        """Whether the adapter was trained here, so that its base model can be told from another."""
        return self.fingerprint is not None

    def check_base_model(self, checkpoint: BaseCheckpoint, chat_template: str) -> None:
        """Raises LorgnetteError where the base model is not the one the adapter was trained on."""
        where, remedy = str(checkpoint.folder), f"the adapter was trained on {self.model}: give that with --model"
        remedy += f"; if it is that, it or {METADATA_FILE} has changed since"
        if not self.is_ours:
            return
        if checkpoint.family.model_type != self.family:
            raise LorgnetteError(
                f"base model is a {checkpoint.family.model_type}, the adapter's a {self.family}",
                where=where,
                hint=remedy,
            )
        if checkpoint.fingerprint != self.fingerprint:
            raise LorgnetteError(
                "base model has other weights than the adapter was trained on", where=where, hint=remedy
            )
        if chat_template != self.chat_template:
            raise LorgnetteError(
                "base model has another chat template than the adapter was trained on", where=where, hint=remedy
            )
