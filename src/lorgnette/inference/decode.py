"""Batched answers from our own decoder: greedy or sampled, without transformers and PEFT.

Greedy answers equal those of transformers' `generate` (hf_generate.py): token for token in fp32. In bf16 two logits
closer than rounding may swap. Sampled answers follow the same distribution with other random numbers (sampling.py).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lorgnette.inference.generator import Generator
from lorgnette.inference.sampling import (
    EOS_TOKENS,
    AnswerWatcher,
    Sampler,
    SamplingParams,
    TokenCallback,
    build_prediction,
)
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example, Prediction

CHECK_INTERVAL = 8
"""Tokens between two checks whether all answers have ended. Each check makes the host wait for the device."""


def generate_answers(
    generator: Generator,
    processor: Processor,
    examples: Sequence[Example],
    sampling: SamplingParams,
    adapter: str | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    on_tokens: TokenCallback | None = None,
) -> Iterator[Prediction]:
    """The model's answer to every example's prompt, in order. adapter=None disables the adapter. on_progress(n) is
    called after each batch of n examples, on_tokens after every few tokens of a batch. Out of memory, a batch is
    answered in halves. Raises LorgnetteError for an unreadable image and for a prompt that is too long."""
    eos_token_ids = [processor.tokenizer.control_tokens[name] for name in EOS_TOKENS]
    start, batch_size = 0, sampling.batch_size
    while start < len(examples):
        batch = examples[start : start + batch_size]
        prompts = [processor.encode(example, add_generation_prompt=True) for example in batch]
        for error in generator.features.prepare(grid for prompt in prompts for grid in prompt.grids).values():
            raise error
        indices = range(start, start + len(batch))
        sampler = Sampler(sampling, indices, generator.device)
        watcher = AnswerWatcher(on_tokens, indices, eos_token_ids) if on_tokens else None
        answers: Tensor | None = None
        try:
            answers = generate_tokens(
                generator, prompts, sampler, sampling.max_new_tokens, eos_token_ids, use_adapter=adapter is not None,
                watcher=watcher,
            )  # fmt: skip
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        if answers is None:  # now that no traceback holds its tensors
            batch_size = len(batch) // 2
            generator.drop_caches()
            continue
        start += len(batch)
        probabilities = sampler.list_probabilities(len(batch))
        rows = watcher.cut(answers.tolist()) if watcher else answers.tolist()
        for example, answer_ids, of_tokens in zip(batch, rows, probabilities, strict=True):
            yield build_prediction(processor, example, answer_ids, adapter, of_tokens)
        on_progress(len(batch))


@torch.no_grad()
def generate_tokens(
    generator: Generator,
    prompts: Sequence[Encoded],
    sampler: Callable[[Float32[Tensor, "B V"], int], Int64[Tensor, " B"]],
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    *,
    use_adapter: bool,
    watcher: AnswerWatcher | None = None,
) -> Int64[Tensor, "B N"]:
    """The answers' token ids on the host, N <= max_new_tokens. An answer that has ended repeats its last token.

    watcher: is shown the answers at every check.
    """
    cache = generator.prefill(prompts, max_new_tokens, use_adapter=use_adapter)
    device = generator.device
    eos = torch.tensor(eos_token_ids, dtype=torch.int64, device=device)
    tokens = torch.empty(max_new_tokens, len(prompts), dtype=torch.int64, device=device)
    logits, has_ended = cache.logits[: len(prompts)], torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for i in range(max_new_tokens):
        torch.where(has_ended, tokens[i - 1], sampler(logits, i), out=tokens[i])
        has_ended |= torch.isin(tokens[i], eos)
        is_last = i + 1 == max_new_tokens
        is_check = i % CHECK_INTERVAL == CHECK_INTERVAL - 1
        if watcher is not None and (is_check or is_last):
            has_ended[watcher.show(tokens[: i + 1].T.tolist())] = True
        if is_last or (is_check and bool(has_ended.all())):
            return tokens[: i + 1].T.cpu()
        logits = generator.decode_step(cache, tokens[i], use_adapter=use_adapter)
    return tokens[:0].T.cpu()
