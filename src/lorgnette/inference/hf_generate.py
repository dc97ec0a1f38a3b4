"""Batched answers from a loaded model: greedy, or sampled.

Generation is transformers' own (`generate`, with its KV cache); what goes in comes from the encoder that training
uses, so that prompt, template and resolution are those the adapter was trained with.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorgnette.data import load as load_picture
from lorgnette.processing.processor import Encoder
from lorgnette.processing.tokenizer import END, IMAGE, TEXT_END
from lorgnette.types import Encoded, Example, Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENDS = (END, TEXT_END)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn. temperature None: greedy, the likeliest token every time."""

    max_new_tokens: int = 128
    batch_size: int = 32
    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0


def answers(
    model: "PreTrainedModel",
    encoder: Encoder,
    examples: Sequence[Example],
    sampling: Sampling,
    *,
    adapter: str | None = None,
    seen: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """The model's answer to every example's prompt, in order. A model that carries an adapter answers without it
    where `adapter` is None. seen(n) is called as n more are done."""
    torch.manual_seed(sampling.seed)
    left = iter(examples)
    model.eval()
    while group := list(islice(left, sampling.batch_size)):
        with _without_adapter(model) if adapter is None else nullcontext():
            answered = _batch(model, encoder, group, sampling, adapter)
        yield from answered
        seen(len(group))


def _batch(
    model: "PreTrainedModel", encoder: Encoder, examples: list[Example], sampling: Sampling, adapter: str | None
) -> list[Prediction]:
    encoded = [encoder.encode(example, answer=True) for example in examples]
    inputs = _padded(encoded, encoder, next(model.parameters()).device)
    with torch.inference_mode():
        rows = model.generate(**inputs, generation_config=_configuration(encoder, sampling))
    width = inputs["input_ids"].shape[1]
    ends = {encoder.tokenizer.control[name] for name in ENDS}
    made = []
    for example, row in zip(examples, rows[:, width:].tolist(), strict=True):
        length = next((i for i, number in enumerate(row) if number in ends), None)
        text = encoder.tokenizer.text_of(row[:length])
        made.append(Prediction(example, text, adapter, stopped=length is not None))
    return made


def _padded(encoded: Sequence[Encoded], encoder: Encoder, device: torch.device) -> dict[str, Any]:
    """The batch as transformers takes it, padded on the left: [B, L] ids, mask and token types, and the patches."""
    longest = max(len(e.tokens) for e in encoded)
    ids = np.full((len(encoded), longest), encoder.tokenizer.control[TEXT_END], np.int64)
    mask = np.zeros_like(ids)
    for row, e in enumerate(encoded):
        ids[row, longest - len(e.tokens) :] = e.tokens
        mask[row, longest - len(e.tokens) :] = 1
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": ((ids == encoder.tokenizer.control[IMAGE]) & (mask == 1)).astype(np.int64),
    }
    grids = [grid for e in encoded for grid in e.grids]
    if grids:
        pixels = [encoder.rule.pixels(load_picture(grid.picture.path)) for grid in grids]
        inputs["pixel_values"] = np.concatenate([encoder.rule.patches(picture) for picture in pixels])
        inputs["image_grid_thw"] = np.array([[grid.t, grid.h, grid.w] for grid in grids], np.int64)
    return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}


def _configuration(encoder: Encoder, sampling: Sampling) -> Any:
    from transformers import GenerationConfig

    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=[encoder.tokenizer.control[name] for name in ENDS],
        pad_token_id=encoder.tokenizer.control[TEXT_END],
        **(drawn if sampling.temperature is not None else {"do_sample": False}),
    )


def _without_adapter(model: "PreTrainedModel") -> AbstractContextManager[Any]:
    from peft import PeftModel

    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
