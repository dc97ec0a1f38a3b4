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

import PIL.Image
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from lorgnette.config import ProcessorSettings
from lorgnette.demo.captions import write_caption
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_json
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, PackedBatch, Turn

IMAGE_FILE, SAMPLE_FILE = "witness.png", "witness.json"
SCENE = 20141
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""How far the loss, in nats a token, may be from the one an engine found in this precision when it is asked again in
float32. Measured on the built-in model on a CPU: 3e-7 and 6e-4; untuned, its loss is off by 0.95."""


@runtime_checkable
class LossEngine(Protocol):
    """What is asked: the engine that trained."""

    @property
    def dtype(self) -> torch.dtype: ...

    def compute_loss(self, batch: PackedBatch) -> torch.Tensor: ...


class ReferenceSample(BaseModel):
    """encode: training's settings. tokens: [T] up to where the assistant speaks; answer: [R] its text and end token,
    whose mean loss in nats is `loss`, found by an engine that computes in `dtype`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    prompt: str
    processor: ProcessorSettings
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    loss: float
    dtype: Literal["float32", "bfloat16"]

    @classmethod
    def load(cls, adapter: Path) -> "ReferenceSample | None":
        """None where the adapter has none. Raises LorgnetteError for a broken one, or half of one."""
        path = adapter / SAMPLE_FILE
        there = [(adapter / name).is_file() for name in (SAMPLE_FILE, IMAGE_FILE)]
        if not any(there):
            return None
        if not all(there):
            gone = IMAGE_FILE if there[0] else SAMPLE_FILE
            raise LorgnetteError(f"{gone} is missing", where=str(adapter), hint="copy the adapter's folder again")
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, ValidationError) as error:
            raise LorgnetteError(
                f"{SAMPLE_FILE} cannot be read: {str(error).splitlines()[0]}",
                where=str(path),
                hint="copy the adapter's folder again",
            ) from None

    def save(self, adapter: Path) -> None:
        """With its picture, into the adapter's folder."""
        _load_image().save(adapter / IMAGE_FILE)
        write_json(adapter / SAMPLE_FILE, self.model_dump(mode="json"))

    def describe_change(self, adapter: Path, processor: Processor, prompt: str) -> str | None:
        """What the encoder would do otherwise than training did, in words; None: nothing."""
        now, then = (settings.model_dump(mode="json") for settings in (processor.settings, self.processor))
        odd = [name for name in now if now[name] != then[name]]
        if odd:
            told = "; ".join(f"encode.{name} is {now[name]}, was {then[name]}" for name in odd)
            return f"pictures and answers are encoded otherwise than in training: {told}"
        if prompt != self.prompt:
            return f"the prompt is another than in training: {prompt!r}, was {self.prompt!r}"
        made = _split_ids(_encode_sample(adapter / IMAGE_FILE, processor, prompt))
        if made == (self.prompt_ids, self.answer_ids):
            return None
        ids, before = (*made[0], *made[1]), (*self.prompt_ids, *self.answer_ids)
        first = next(i for i, (one, other) in enumerate(zip_longest(ids, before)) if one != other)
        is_now, was = (
            processor.tokenizer.decode_with_control_tokens(some[first : first + 4]) for some in (ids, before)
        )
        return (
            f"template, tokenizer or picture rule make other tokens than in training, from token {first} on: "
            f"{is_now!r}, was {was!r}"
        )


def make_sample(folder: Path, processor: Processor, prompt: str) -> Encoded:
    """What a witness is asked. Its picture is drawn into `folder`, where it must stay until its features are made."""
    _load_image().save(folder / IMAGE_FILE)
    return _encode_sample(folder / IMAGE_FILE, processor, prompt)


def record_sample(engine: LossEngine, encoded: Encoded, processor: Processor, prompt: str) -> ReferenceSample:
    """Ask the engine for its loss. encoded: `question`'s, with its picture's features at hand."""
    tokens, answer = _split_ids(encoded)
    loss = engine.compute_loss(pack([encoded], encoded.num_labels)).item()
    dtype = "float32" if engine.dtype == torch.float32 else "bfloat16"
    return ReferenceSample(
        prompt=prompt,
        processor=processor.settings,
        prompt_ids=tokens,
        answer_ids=answer,
        loss=round(loss, 6),
        dtype=dtype,
    )


def _load_image() -> PIL.Image.Image:
    return draw_scene(sample_scene(random.Random(SCENE)))


def _encode_sample(image: Path, processor: Processor, prompt: str) -> Encoded:
    """The drawn scene with its caption, as the CSV of a training would give it, however few tokens are allowed."""
    turns = (
        Turn("user", (Image(image), prompt)),
        Turn("assistant", (write_caption(sample_scene(random.Random(SCENE))),)),
    )
    roomy = processor.settings.model_copy(update={"max_length": 2**31})
    example = Example("witness", turns, image, 1)
    return Processor(processor.tokenizer, processor.chat_template, processor.image_processor, roomy).encode(example)


def _split_ids(encoded: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens before the answer, and the answer's with its end."""
    rows = (encoded.labels != IGNORE_INDEX).nonzero()[0]
    return tuple(encoded.input_ids[: rows[0]].tolist()), tuple(encoded.input_ids[rows].tolist())
