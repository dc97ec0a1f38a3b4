"""A witness beside the adapter: one drawn picture, the tokens it made in training, and the loss the engine found on it.

    witness.png  witness.json

Whoever has the adapter can ask again: other tokens mean another resolution, template or tokenizer than in training,
another loss other weights. The picture is drawn, so that no training picture is handed on with an adapter.
"""

import json
import random
from itertools import zip_longest
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from lorgnette.config import Encode
from lorgnette.demo.captions import caption
from lorgnette.demo.scenes import draw, random_scene
from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_json
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Encoder
from lorgnette.types import IGNORED, Encoded, Example, PackedBatch, Picture, Turn

PICTURE, FILE = "witness.png", "witness.json"
SCENE = 20141
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""How far the loss, in nats a token, may be from the one an engine found in this precision when it is asked again in
float32. Measured on the built-in model on a CPU: 3e-7 and 6e-4; untuned, its loss is off by 0.95."""


@runtime_checkable
class Engine(Protocol):
    """What is asked: the engine that trained."""

    @property
    def dtype(self) -> torch.dtype: ...

    def loss(self, batch: PackedBatch) -> torch.Tensor: ...


class Witness(BaseModel):
    """encode: training's settings. tokens: [T] up to where the assistant speaks; answer: [R] its text and end token,
    whose mean loss in nats is `loss`, found by an engine that computes in `dtype`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    prompt: str
    encode: Encode
    tokens: tuple[int, ...]
    answer: tuple[int, ...]
    loss: float
    dtype: Literal["float32", "bfloat16"]

    @classmethod
    def read(cls, adapter: Path) -> "Witness | None":
        """None where the adapter has none. Raises LorgnetteError for a broken one, or half of one."""
        path = adapter / FILE
        there = [(adapter / name).is_file() for name in (FILE, PICTURE)]
        if not any(there):
            return None
        if not all(there):
            gone = PICTURE if there[0] else FILE
            raise LorgnetteError(f"{gone} is missing", where=str(adapter), remedy="copy the adapter's folder again")
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, ValidationError) as error:
            raise LorgnetteError(
                f"{FILE} cannot be read: {str(error).splitlines()[0]}",
                where=str(path),
                remedy="copy the adapter's folder again",
            ) from None

    def write(self, adapter: Path) -> None:
        """With its picture, into the adapter's folder."""
        _drawn().save(adapter / PICTURE)
        write_json(adapter / FILE, self.model_dump(mode="json"))

    def difference(self, adapter: Path, encoder: Encoder, prompt: str) -> str | None:
        """What the encoder would do otherwise than training did, in words; None: nothing."""
        now, then = (settings.model_dump(mode="json") for settings in (encoder.settings, self.encode))
        odd = [name for name in now if now[name] != then[name]]
        if odd:
            told = "; ".join(f"encode.{name} is {now[name]}, was {then[name]}" for name in odd)
            return f"pictures and answers are encoded otherwise than in training: {told}"
        if prompt != self.prompt:
            return f"the prompt is another than in training: {prompt!r}, was {self.prompt!r}"
        made = _parts(_encoded(adapter / PICTURE, encoder, prompt))
        if made == (self.tokens, self.answer):
            return None
        ids, before = (*made[0], *made[1]), (*self.tokens, *self.answer)
        first = next(i for i, (one, other) in enumerate(zip_longest(ids, before)) if one != other)
        is_now, was = (encoder.tokenizer.shown(some[first : first + 4]) for some in (ids, before))
        return (
            f"template, tokenizer or picture rule make other tokens than in training, from token {first} on: "
            f"{is_now!r}, was {was!r}"
        )


def question(folder: Path, encoder: Encoder, prompt: str) -> Encoded:
    """What a witness is asked. Its picture is drawn into `folder`, where it must stay until its features are made."""
    _drawn().save(folder / PICTURE)
    return _encoded(folder / PICTURE, encoder, prompt)


def witnessed(engine: Engine, encoded: Encoded, encoder: Encoder, prompt: str) -> Witness:
    """Ask the engine for its loss. encoded: `question`'s, with its picture's features at hand."""
    tokens, answer = _parts(encoded)
    loss = engine.loss(pack([encoded], encoded.label_count)).item()
    dtype = "float32" if engine.dtype == torch.float32 else "bfloat16"
    return Witness(
        prompt=prompt, encode=encoder.settings, tokens=tokens, answer=answer, loss=round(loss, 6), dtype=dtype
    )


def _drawn() -> Image:
    return draw(random_scene(random.Random(SCENE)))


def _encoded(picture: Path, encoder: Encoder, prompt: str) -> Encoded:
    """The drawn scene with its caption, as the CSV of a training would give it, however few tokens are allowed."""
    turns = (
        Turn("user", (Picture(picture), prompt)),
        Turn("assistant", (caption(random_scene(random.Random(SCENE))),)),
    )
    roomy = encoder.settings.model_copy(update={"max_tokens": 2**31})
    example = Example("witness", turns, picture, 1)
    return Encoder(encoder.tokenizer, encoder.template, encoder.rule, roomy).encode(example)


def _parts(encoded: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens before the answer, and the answer's with its end."""
    rows = (encoded.labels != IGNORED).nonzero()[0]
    return tuple(encoded.tokens[: rows[0]].tolist()), tuple(encoded.tokens[rows].tolist())
