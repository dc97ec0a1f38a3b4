"""Batched answers from transformers' own `generate`, with its KV cache. The `reference` engine answers with it.

The inputs come from the processor that training uses, so prompt, chat template and resolution are the adapter's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from lorgnette.data import load_image
from lorgnette.inference.sampling import (
    EOS_TOKENS,
    AnswerWatcher,
    SamplingParams,
    TokenCallback,
    build_prediction,
    compute_probabilities,
)
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
    adapter: str | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    on_tokens: TokenCallback | None = None,
) -> Iterator[Prediction]:
    """The model's answer to every example's prompt, in order. adapter=None disables the model's adapter. on_progress(n)
    is called after each batch of n examples, on_tokens after every token of a batch."""
    from peft import PeftModel
    from transformers import GenerationConfig, StoppingCriteriaList

    control_tokens, temperature = processor.tokenizer.control_tokens, sampling.temperature
    eos_token_ids = [control_tokens[name] for name in EOS_TOKENS]
    sample = {"do_sample": True, "temperature": temperature, "top_p": sampling.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=eos_token_ids,
        pad_token_id=control_tokens[ENDOFTEXT_TOKEN],
        **({"do_sample": False} if temperature is None else sample),
    )
    torch.manual_seed(sampling.seed)
    model.eval()
    for start in range(0, len(examples), sampling.batch_size):
        batch = examples[start : start + sampling.batch_size]
        prompts = [processor.encode(example, add_generation_prompt=True) for example in batch]
        inputs = _pad_batch(prompts, processor, next(model.parameters()).device)
        is_disabled = adapter is None and isinstance(model, PeftModel)
        recorder, num_prompt_tokens = _ProbabilityRecorder(), inputs["input_ids"].shape[1]
        watcher = AnswerWatcher(on_tokens, range(start, start + len(batch)), eos_token_ids) if on_tokens else None
        criteria = [partial(_find_ends, watcher, num_prompt_tokens)] if watcher else []
        with torch.inference_mode(), model.disable_adapter() if is_disabled else nullcontext():
            sequences = model.generate(
                **inputs,
                generation_config=config,
                logits_processor=[recorder] if sampling.with_boxes else [],
                stopping_criteria=StoppingCriteriaList(criteria),
            )
            probabilities = recorder.list_probabilities(sequences)
        answers = sequences[:, num_prompt_tokens:].tolist()
        answers = watcher.cut(answers) if watcher else answers
        for example, answer_ids, of_tokens in zip(batch, answers, probabilities, strict=True):
            yield build_prediction(processor, example, answer_ids, adapter, of_tokens)
        on_progress(len(batch))


def _find_ends(
    watcher: AnswerWatcher, num_prompt_tokens: int, input_ids: Int64[Tensor, "B T"], scores: object
) -> Bool[Tensor, " B"]:
    """A stopping criterion: whether the watcher's callback has ended each row. scores: not read."""
    flags = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    flags[watcher.show(input_ids[:, num_prompt_tokens:].tolist())] = True
    return flags


class _ProbabilityRecorder:
    """A logits processor that changes nothing. It keeps the probability of every token that was picked."""

    def __init__(self) -> None:
        self._logits: Float32[Tensor, "B V"] | None = None
        self._probabilities: list[Float32[Tensor, " B"]] = []

    def __call__(self, input_ids: Int64[Tensor, "B T"], scores: Float32[Tensor, "B V"]) -> Float32[Tensor, "B V"]:
        """Called before each token is picked, with the tokens so far."""
        self._record(input_ids)
        self._logits = scores.clone()  # later processors may change them
        return scores

    def list_probabilities(self, sequences: Int64[Tensor, "B T"]) -> Sequence[Sequence[float] | None]:
        """By row; None for each row if it was not called. sequences: all tokens at the end."""
        self._record(sequences)
        return torch.stack(self._probabilities, 1).tolist() if self._probabilities else [None] * len(sequences)

    def _record(self, input_ids: Int64[Tensor, "B T"]) -> None:
        if self._logits is not None:
            self._probabilities.append(compute_probabilities(self._logits, input_ids[:, -1]))


def _pad_batch(encoded: Sequence[Encoded], processor: Processor, device: torch.device) -> dict[str, Any]:
    """The batch as transformers' `generate` takes it, padded on the left: [B, L] ids, mask, token types; patches.

    Attention masks the padding, and linear attention reads zeros there: an answer is that of its prompt alone. Without
    token types Qwen2.5-VL would count images as text, silently.
    """
    longest = max(len(e.input_ids) for e in encoded)
    control_tokens = processor.tokenizer.control_tokens
    ids = np.full((len(encoded), longest), control_tokens[ENDOFTEXT_TOKEN], np.int64)
    mask = np.zeros_like(ids)
    for row, e in enumerate(encoded):
        ids[row, longest - len(e.input_ids) :] = e.input_ids
        mask[row, longest - len(e.input_ids) :] = 1
    token_types = ((ids == control_tokens[IMAGE_TOKEN]) & (mask == 1)).astype(np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": token_types}
    grids = [grid for e in encoded for grid in e.grids]
    if grids:
        images = [processor.image_processor.resize(load_image(grid.image.path)) for grid in grids]
        inputs["pixel_values"] = np.concatenate([processor.image_processor.patchify(image) for image in images])
        inputs["image_grid_thw"] = np.array([[grid.t, grid.h, grid.w] for grid in grids], np.int64)
    return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}
