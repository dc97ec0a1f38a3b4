"""`lorgnette.json`: what an adapter was trained with, kept in its folder and honoured ever after.

The commonest "my tuned model is bad" is another resolution, prompt or template at prediction than in training; the
second commonest is another base model. Needs no torch.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lorgnette.config import Data, Encode
from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_json
from lorgnette.models.base_checkpoint import Checkpoint

FILE = "lorgnette.json"
PEFT_FILE = "adapter_config.json"
_REMEDY = "copy the adapter's folder again, or use the lorgnette that wrote it"


class Contract(BaseModel):
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
    encode: Encode

    def write(self, adapter: Path) -> None:
        write_json(adapter / FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, adapter: Path) -> "Contract":
        """Raises LorgnetteError where the folder is no adapter of ours."""
        path = adapter / FILE
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise LorgnetteError(
                f"no adapter here: {FILE} is missing", where=str(adapter), remedy="name a run's `adapter` folder"
            ) from None
        except ValidationError as error:
            fault = error.errors()[0]
            what = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ")
            raise LorgnetteError(f"{FILE} does not fit: {what}", where=str(path), remedy=_REMEDY) from None
        except ValueError as error:
            raise LorgnetteError(f"{FILE} cannot be read: {error}", where=str(path), remedy=_REMEDY) from None

    @classmethod
    def of(cls, adapter: Path) -> "Contract":
        """The adapter's own, or, for one that PEFT alone has written, what the tutorial trains with: nothing in such a
        folder says otherwise, so say it to whoever asks."""
        foreign = adapter / PEFT_FILE
        if (adapter / FILE).exists() or not foreign.is_file():
            return cls.read(adapter)
        try:
            base = json.loads(foreign.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (ValueError, AttributeError) as error:
            raise LorgnetteError(f"{PEFT_FILE} cannot be read: {error}", where=str(foreign), remedy=_REMEDY) from None
        return cls(
            family=None, model=base or "unknown", revision=None, fingerprint=None, prompt=Data().prompt,
            chat_template=None, encode=Encode(),
        )  # fmt: skip

    @property
    def known(self) -> bool:
        """Whether the adapter was trained here, so that its base model can be told from another."""
        return self.fingerprint is not None

    def demand(self, checkpoint: Checkpoint, chat_template: str) -> None:
        """Raises LorgnetteError where the base model is not the one the adapter was trained on."""
        where, remedy = str(checkpoint.folder), f"the adapter was trained on {self.model}: give that with --model"
        remedy += f"; if it is that, it or {FILE} has changed since"
        if not self.known:
            return
        if checkpoint.family.model_type != self.family:
            raise LorgnetteError(
                f"base model is a {checkpoint.family.model_type}, the adapter's a {self.family}",
                where=where,
                remedy=remedy,
            )
        if checkpoint.fingerprint != self.fingerprint:
            raise LorgnetteError(
                "base model has other weights than the adapter was trained on", where=where, remedy=remedy
            )
        if chat_template != self.chat_template:
            raise LorgnetteError(
                "base model has another chat template than the adapter was trained on", where=where, remedy=remedy
            )
