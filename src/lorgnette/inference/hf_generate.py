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

from lorgnette.data import load_image as load_picture
from lorgnette.processing.processor import Processor
from lorgnette.processing.tokenizer import ENDOFTEXT_TOKEN, IM_END_TOKEN, IMAGE_TOKEN
from lorgnette.types import Encoded, Example, Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EOS_TOKENS = (IM_END_TOKEN, ENDOFTEXT_TOKEN)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How answers are drawn. temperature None: greedy, the likeliest token every time."""

    max_new_tokens: int = 128
    batch_size: int = 32
    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0


def generate_answers(
    model: "PreTrainedModel",
    processor: Processor,
    examples: Sequence[Example],
    sampling: SamplingParams,
    *,
    adapter: str | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """The model's answer to every example's prompt, in order. A model that carries an adapter answers without it
    where `adapter` is None. seen(n) is called as n more are done."""
    torch.manual_seed(sampling.seed)
    left = iter(examples)
    model.eval()
    while group := list(islice(left, sampling.batch_size)):
        with _disable_adapter(model) if adapter is None else nullcontext():
            answered = _generate_batch(model, processor, group, sampling, adapter)
        yield from answered
        on_progress(len(group))


def _generate_batch(
    model: "PreTrainedModel",
    processor: Processor,
    examples: list[Example],
    sampling: SamplingParams,
    adapter: str | None,
) -> list[Prediction]:
    encoded = [processor.encode(example, add_generation_prompt=True) for example in examples]
    inputs = _pad_batch(encoded, processor, next(model.parameters()).device)
    with torch.inference_mode():
        rows = model.generate(**inputs, generation_config=_build_generation_config(processor, sampling))
    width = inputs["input_ids"].shape[1]
    ends = {processor.tokenizer.control_tokens[name] for name in EOS_TOKENS}
    made = []
    for example, row in zip(examples, rows[:, width:].tolist(), strict=True):
        length = next((i for i, number in enumerate(row) if number in ends), None)
        text = processor.tokenizer.decode(row[:length])
        made.append(Prediction(example, text, adapter, is_complete=length is not None))
    return made


def _pad_batch(encoded: Sequence[Encoded], processor: Processor, device: torch.device) -> dict[str, Any]:
    """The batch as transformers takes it, padded on the left: [B, L] ids, mask and token types, and the patches."""
    longest = max(len(e.input_ids) for e in encoded)
    ids = np.full((len(encoded), longest), processor.tokenizer.control_tokens[ENDOFTEXT_TOKEN], np.int64)
    mask = np.zeros_like(ids)
    for row, e in enumerate(encoded):
        ids[row, longest - len(e.input_ids) :] = e.input_ids
        mask[row, longest - len(e.input_ids) :] = 1
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": ((ids == processor.tokenizer.control_tokens[IMAGE_TOKEN]) & (mask == 1)).astype(np.int64),
    }
    grids = [grid for e in encoded for grid in e.grids]
    if grids:
        pixels = [processor.image_processor.resize(load_picture(grid.image.path)) for grid in grids]
        inputs["pixel_values"] = np.concatenate([processor.image_processor.patchify(picture) for picture in pixels])
        inputs["image_grid_thw"] = np.array([[grid.t, grid.h, grid.w] for grid in grids], np.int64)
    return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}


def _build_generation_config(processor: Processor, sampling: SamplingParams) -> Any:
    from transformers import GenerationConfig

    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=[processor.tokenizer.control_tokens[name] for name in EOS_TOKENS],
        pad_token_id=processor.tokenizer.control_tokens[ENDOFTEXT_TOKEN],
        **(drawn if sampling.temperature is not None else {"do_sample": False}),
    )


def _disable_adapter(model: "PreTrainedModel") -> AbstractContextManager[Any]:
    from peft import PeftModel

    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
