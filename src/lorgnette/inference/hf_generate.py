"""Batched answers from transformers' own `generate`, with its KV cache. The `reference` engine answers with it.

The inputs come from the processor that training uses, so prompt, chat template and resolution are the adapter's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorgnette.data import load_image
from lorgnette.inference.sampling import EOS_TOKENS, SamplingParams, build_prediction
from lorgnette.processing.processor import Processor
from lorgnette.processing.tokenizer import ENDOFTEXT_TOKEN, IMAGE_TOKEN
from lorgnette.types import Encoded, Example, Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def generate_answers(
    model: "PreTrainedModel",
    processor: Processor,
    examples: Sequence[Example],
    sampling: SamplingParams,
    *,
    adapter: str | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """The model's answer to every example's prompt, in order. adapter=None disables the model's adapter. on_progress(n)
    is called after each batch of n examples."""
    torch.manual_seed(sampling.seed)
    remaining = iter(examples)
    model.eval()
    while batch := list(islice(remaining, sampling.batch_size)):
        with _disable_adapter(model) if adapter is None else nullcontext():
            predictions = _generate_batch(model, processor, batch, sampling, adapter)
        yield from predictions
        on_progress(len(batch))


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
        sequences = model.generate(**inputs, generation_config=_build_generation_config(processor, sampling))
    prompt_length = inputs["input_ids"].shape[1]
    return [
        build_prediction(processor, example, answer_ids, adapter)
        for example, answer_ids in zip(examples, sequences[:, prompt_length:].tolist(), strict=True)
    ]


def _pad_batch(encoded: Sequence[Encoded], processor: Processor, device: torch.device) -> dict[str, Any]:
    """The batch as transformers' `generate` takes it, padded on the left: [B, L] ids, mask, token types; patches."""
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
        images = [processor.image_processor.resize(load_image(grid.image.path)) for grid in grids]
        inputs["pixel_values"] = np.concatenate([processor.image_processor.patchify(image) for image in images])
        inputs["image_grid_thw"] = np.array([[grid.t, grid.h, grid.w] for grid in grids], np.int64)
    return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}


def _build_generation_config(processor: Processor, sampling: SamplingParams) -> Any:
    from transformers import GenerationConfig

    sample = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=[processor.tokenizer.control_tokens[name] for name in EOS_TOKENS],
        pad_token_id=processor.tokenizer.control_tokens[ENDOFTEXT_TOKEN],
        **(sample if sampling.temperature is not None else {"do_sample": False}),
    )


def _disable_adapter(model: "PreTrainedModel") -> AbstractContextManager[Any]:
    from peft import PeftModel

    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
